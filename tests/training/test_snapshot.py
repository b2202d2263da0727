"""Resuming checks everything before it changes or writes anything; what does not fit gets one sentence."""

import json
import shutil

import numpy as np
import pytest

from scratchnet.optim import SGD, Constant, Cosine
from scratchnet.tensorfile import FormatError, read_tensors, write_tensors
from scratchnet.training import Observer, RunDirectory, RunError, Trainer, snapshot
from tests.fakes.runs import FILES
from tests.fakes.tiny import go_on, loaders, network, prepare


class Notices(Observer):
    def __init__(self):
        self.said = []

    def on_notice(self, trainer, sentence):
        self.said.append(sentence)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of runs: ``a`` after 1, 2 and 3 epochs, and another, ``b``."""
    folder = tmp_path_factory.mktemp("runs")
    for epochs in (1, 2, 3):
        go_on(folder / "a", epochs)
        shutil.copytree(folder / "a", folder / f"a{epochs}")
    go_on(folder / "b", 3, seed=1)
    return folder


@pytest.fixture
def run(runs, tmp_path):
    return shutil.copytree(runs / "a3", tmp_path / "run")


def refused(run, words, error=RunError, trainer=None):
    """Resuming raises an error with these words, and has changed neither files nor the trainer."""
    trainer = trainer or prepare(run)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    weights = [p.data.copy() for p in trainer.net.parameters().values()]
    with pytest.raises(error, match=words) as caught:
        trainer.resume()
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    for p, values in zip(trainer.net.parameters().values(), weights, strict=True):
        assert (p.data == values).all()
    assert trainer.log == [] and trainer.optimizer.momentum_buffer is None
    return str(caught.value)


def rewrite(run, change):
    """Write the state again as a change of its tensors and header leaves it, with a digest that holds."""
    tensors, text = read_tensors(run / "state.safetensors")
    header = json.loads(text)
    change(tensors, header)
    write_tensors(run / "state.safetensors", tensors, json.dumps(header))


# Files that do not belong together


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors"])
def test_weights_of_another_run_are_refused(run, runs, name):
    shutil.copy(runs / "b" / name, run / name)
    refused(run, f"{name} is of another run than state.safetensors")


def test_weights_that_are_older_than_the_state_are_refused(run, runs):
    shutil.copy(runs / "a1" / "last.safetensors", run / "last.safetensors")
    refused(run, r"last\.safetensors holds the weights of epoch 1, not those that state.safetensors names")


def test_a_best_that_is_not_the_states_is_refused(run, runs):
    other = next(r for r in ("a1", "a2", "a3") if (runs / r / "last.safetensors").read_bytes()
                 != (run / "best.safetensors").read_bytes())  # fmt: skip
    shutil.copy(runs / other / "last.safetensors", run / "best.safetensors")
    refused(
        run,
        r"best\.safetensors holds the weights of epoch \d, not those that state.safetensors names after 3",
    )


def test_a_state_of_another_run_is_refused(run, runs):
    shutil.copy(runs / "b" / "state.safetensors", run / "state.safetensors")
    refused(run, "is of another run than state.safetensors")


def test_a_state_that_is_older_than_the_rest_is_refused(run, runs):
    shutil.copy(runs / "a1" / "state.safetensors", run / "state.safetensors")
    refused(run, "not those that state.safetensors names after 1 epochs|log.csv has 3 epochs")


def test_a_config_of_another_run_is_refused(run, runs):
    shutil.copy(runs / "b" / "config.json", run / "config.json")
    refused(run, "config.json is of another run than state.safetensors")


@pytest.mark.parametrize("rows", [0, 1])
def test_a_log_that_is_shorter_is_refused(run, rows):
    lines = (run / "log.csv").read_text().splitlines(keepends=True)
    (run / "log.csv").write_text("".join(lines[: 1 + rows]))
    refused(run, f"log.csv has {rows} epochs, and they are not the 3 of state.safetensors")


def test_a_log_that_says_something_else_is_refused(run):
    (run / "log.csv").write_text((run / "log.csv").read_text().replace("0.", "1.", 1))
    refused(run, "log.csv has 3 epochs, and they are not the 3 of")


def test_a_log_that_lacks_the_last_row_is_completed(run):
    text = (run / "log.csv").read_text()
    (run / "log.csv").write_text("".join(text.splitlines(keepends=True)[:-1]))
    prepare(run).resume()
    assert (run / "log.csv").read_text() == text


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors", "state.safetensors"])
def test_one_flipped_bit_is_refused_with_the_files_name(run, name):
    content = bytearray((run / name).read_bytes())
    content[-20] ^= 1
    (run / name).write_bytes(content)
    refused(run, f"{name} is damaged", error=(RunError, FormatError))


# States that do not fit


def of(name, value):
    return lambda tensors, header: tensors.__setitem__(name, value(tensors[name]))


def header(**changed):
    return lambda tensors, header: header.update(changed)


def set_best(value):
    return header(best_accuracy=value)


def fewer_rows(tensors, header):
    header["log"] = header["log"][:1]


def in_log(**changed):
    return lambda tensors, header: header["log"][-1].update(changed)


WRONG = {
    "without momentum": (lambda t, h: t.pop("optimizer.momentum"), "it lacks optimizer.momentum"),
    "momentum of fewer": (of("optimizer.momentum", lambda a: a[1:]), "optimizer.momentum is float32"),
    "float64 weights": (of("parameters.6.weight", lambda a: a.astype("float64")), "6.weight is float64"),
    "integer weights": (of("parameters.6.weight", lambda a: a.astype("int32")), "6.weight is int32"),
    "statistics of one element": (
        of("buffers.1.running_mean", lambda a: a[:1]),
        r"running_mean is float32 \(1,\)",
    ),
    "a weight too many": (lambda t, h: t.update(x=np.zeros(1)), "the network lacks x"),
    "a weight too few": (lambda t, h: t.pop("parameters.6.bias"), "it lacks parameters.6.bias"),
    "NaN as best accuracy": (set_best(float("nan")), "its best accuracy is nan"),
    "2.0 as best accuracy": (set_best(2.0), "its best accuracy is 2.0"),
    "another best accuracy": (set_best(0.123), "its best accuracy is 0.123"),
    "an accuracy of 2": (in_log(val_accuracy=2.0), "its best accuracy is"),
    "fewer epochs": (fewer_rows, "its best accuracy is|not the 1 of|names after 1 epochs"),
    "an epoch twice": (in_log(epoch=1), "row 3 of its log"),
    "a loss of infinity": (in_log(val_loss=float("inf")), "row 3 of its log"),
    "a batch beyond the epoch": (header(batch=99), "it has done 99 of 3 batches"),
    "a batch without images": (header(batch=2), "after 2 batches it has met 0 images"),
    "images without a batch": (header(totals=[1.0, 2, 3]), "after 0 batches it has met 3 images"),
    "totals of NaN": (header(batch=1, totals=[float("nan"), 1, 8]), "it has done 1 of 3"),
    "no generators": (header(generators={}), "it has generators for nothing"),
    "a generator that is none": (header(generators={"5": {"bit_generator": "MT19937"}}), "damaged"),
    "frozen parts that are not there": (header(frozen=["x"]), "it froze x"),
    "another optimizer": (header(optimizer=["AdamW", "a"]), "its optimizer is AdamW of 1 parameters"),
    "no rate": (header(learning_rate={}), "it lacks 'factor'"),
    "a rate of NaN": (
        header(learning_rate={"last": float("nan"), "factor": 1.0, "rollbacks": 0}),
        "its learning rate is",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_state_that_does_not_fit_is_refused(run, what):
    change, words = WRONG[what]
    rewrite(run, change)
    assert "state.safetensors" in refused(run, words)


def test_a_state_of_another_network_is_refused(run):
    refused(run, r"of another network: its optimizer is SGD of 6 parameters", trainer=_other(run))


def _other(run):
    net, (train, validation) = network(), loaders()
    net.layers.pop(1)  # without normalisation
    optimizer = SGD(net.parameters(), 0.02, momentum=0.9)
    return Trainer(net, optimizer, Constant(0.1), train, validation, run, engine="layers", observers=())


def test_an_optimizer_of_some_of_the_parameters_is_compared_by_these(tmp_path):
    def made(*names):
        net, (train, validation) = network(), loaders()
        parameters = {name: p for name, p in net.parameters().items() if name in names}
        optimizer = SGD(parameters, 0.02, momentum=0.9)
        how = {"engine": "layers", "observers": ()}
        return Trainer(net, optimizer, Constant(0.1), train, validation, tmp_path, **how)

    made("6.weight", "6.bias").fit(1)
    made("6.weight", "6.bias").resume(2)
    refused(tmp_path, "its optimizer is SGD of 2 parameters, not SGD of 1", trainer=made("6.weight"))


# What is said, since it may be


def notices_of(run, **settings):
    notices = Notices()
    trainer = prepare(run, observers=[notices], **settings)
    trainer.resume()
    return notices.said


def test_a_run_that_goes_on_as_it_was_has_nothing_to_say(run):
    assert notices_of(run) == []


def test_a_machine_that_computes_other_bits_is_named(run, monkeypatch):
    monkeypatch.setenv("SCRATCHNET_THREADS", "7")
    monkeypatch.setattr(snapshot, "_libraries", lambda: {"NumPy": "9.0", "BLAS": "openblas 1 Zen"})
    (said,) = notices_of(run, engine="plan")
    assert said.startswith("the bits may differ from here on, since this computes with ")
    for words in (
        "engine Plans fp32, before Layers",
        "workers 7, before ",
        "NumPy 9.0, before ",
        "BLAS openblas 1 Zen",
    ):
        assert words in said


def test_a_schedule_that_was_made_for_another_number_of_epochs_is_named(run):
    (said,) = notices_of(run, epochs=6)
    assert said.startswith("the learning rate goes on with 0.0")
    assert "the schedule is another, as for another number of epochs" in said


def test_other_settings_are_named_and_within_an_epoch_those_of_its_images_are_refused(run):
    trainer, notices = prepare(run), Notices()
    trainer.observers, trainer.train.batch_size = (notices,), 10
    trainer.schedule = Cosine(0.02, steps=9, warmup=2)
    trainer.resume()
    assert any("goes on with other settings: batch size 10, before 8" in said for said in notices.said)
    rewrite(run, header(batch=1, totals=[2.0, 3, 8]))
    trainer = prepare(run)
    trainer.train.batch_size = 10
    refused(run, "stopped within an epoch with batch size 8, where this run has 10", trainer=trainer)


# The identity


def test_the_same_run_has_the_same_identity_and_another_one_another(runs, tmp_path):
    assert prepare().identity == prepare().identity
    others = [prepare(seed=1), prepare(epochs=7), prepare()]
    others[2].run = RunDirectory(tmp_path, settings={"lr": 1})
    assert len({prepare().identity, *(other.identity for other in others)}) == 4


def test_options_that_were_edited_are_refused(tmp_path):
    def made(**settings):
        trainer = prepare(tmp_path)
        trainer.run.settings = {"lr": 0.02, "seed": 0, "subset": None} | settings
        return trainer

    trainer = made()
    trainer.run.write_config({})
    trainer.fit(1)
    made().resume()
    for name, value in {"lr": 0.5, "seed": 3, "subset": 64}.items():
        words = rf"config.json does not belong to state.safetensors: its option {name} is {value}, and was "
        refused(tmp_path, words, trainer=made(**{name: value}))
    assert {path.name for path in tmp_path.iterdir()} == FILES


@pytest.mark.parametrize("saved", [True, False])
def test_a_configuration_that_was_changed_is_named(run, saved):
    written = RunDirectory(run).read_config() | {"epochs": 15, "rates": [0.1, 1e-9], "classes": {"1": "é"}}
    RunDirectory(run).write_config(written)
    assert RunDirectory(run).read_config() == written
    if not saved:
        for name in FILES - {"config.json"}:
            (run / name).unlink()
    assert not any("config.json" in said for said in notices_of(run))
    text = (run / "config.json").read_text(encoding="utf-8")
    (run / "config.json").write_text(text.replace("15", "16"), encoding="utf-8")
    said = notices_of(run)[-1]
    assert said == f"{run / 'config.json'} is not as the run wrote it: it was edited, or is damaged"
    del (changed := json.loads(text))["digest"]  # as an older version wrote it
    (run / "config.json").write_text(json.dumps(changed))
    assert not any("config.json" in said for said in notices_of(run))
