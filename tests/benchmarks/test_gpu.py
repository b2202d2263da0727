"""The benchmarks for a GPU: what they count, and that they run, as far as can be seen without one."""

import doctest

import numpy as np
import pytest

from scratchnet import backend, data, models, plans
from tests.fakes import measurements

MACHINE = measurements.MACHINE | {"driver": "580", "command": "python x"}
TINY = {
    "arch": "vgg11",
    "width": 0.0625,
    "batch_size": 2,
    "turns": 1,
    "turn": 0.0,
    "repeats": 1,
    "classifier_width": 8,
    "matrix_size": 16,
    "copy_bytes": 1024,
}
SPEEDS = {"flops": 1e12, "bytes": 1e11}


@pytest.mark.parametrize("name", ["gpu", "record"])
def test_examples_of_cuda_benchmarks(load, name):
    assert doctest.testmod(load(name)).failed == 0


def test_cuda_benchmark_covers_what_was_asked_for(load):
    gpu = load("gpu")
    names = [gpu.name_of(task) for task in gpu.all_tasks()]
    assert len(set(names)) == 2 * 2 * 4 * 3
    for words in (["inference", "vgg16-bn", "1024"], ["training", "vgg16", "224", "64"]):
        assert len(gpu.chosen(words)) == 3
    assert gpu.chosen(["fp8"]) == []


def test_cuda_benchmark_counts_flops_and_bytes(load):
    groups_of = load("gpu_contenders").groups_of
    net = models.VGG([8, "M", 4], 10, 32, width=1.0, classifier_width=16, head="gap", dropout=0.0)
    plan = plans.compile(net, (2, 32, 32, 3), training=True)  # of a CPU: the same groups
    first, second, *_ = groups_of(plan)
    assert first["title"] == "Conv2d+ReLU+MaxPool2d"
    pixels, pooled = 2 * 32 * 32, 2 * 16 * 16
    assert first["flops"] == 2 * 2 * pixels * 8 * 27, "the image needs no gradient"
    assert second["flops"] == 2 * 3 * pooled * 4 * 72
    x, y, weights = pooled * 8, pooled * 4, 72 * 4 + 4
    assert second["bytes"] == 4 * (x + y + weights + (2 * x + y + 2 * weights))
    x, y, weights = pixels * 3, pooled * 8, 27 * 8 + 8
    assert first["bytes"] == 4 * (x + y + weights + (x + y + 2 * weights))
    net.eval()
    second = groups_of(plans.compile(net, (2, 32, 32, 3)))[1]
    assert second["flops"] == 2 * pooled * 4 * 72
    assert second["bytes"] == 4 * (pooled * 8 + pooled * 4 + 72 * 4 + 4)


def answer_of(task, seconds, first=(2.3, 2.2)):
    group = {
        "name": "0",
        "title": "Conv2d",
        "flops": 1e9,
        "bytes": 4e8,
        "seconds": {"forward": 3e-3, "backward": 5e-3},
    }
    product = {**group, "title": "Linear", "flops": 2e9, "bytes": 1e6}
    return {
        "seconds": [seconds, 2 * seconds, seconds / 2],
        "first": list(first),
        "memory": 1234.0,
        "versions": task["contender"],
        "device": "a GPU",
        "groups": [group, product],
        "speeds": SPEEDS,
    }


def test_cuda_benchmark_table(load):
    gpu = load("gpu")
    seconds = {"scratchnet": 0.016, "channels_last": 0.024, "compile": 0.012}
    task = gpu.chosen(["training", "512", "vgg16", "tf32"])[0]
    result = gpu.measure(task, list(seconds), lambda program, t: answer_of(t, seconds[t["contender"]]))
    text = gpu.page({"results": [result], **MACHINE})
    row = next(line for line in text.splitlines() if line.startswith("| training"))
    # 512 images in 16, 24 and 12 ms; 12 of 16 ms; floors of 4 ms (bytes) and 2 ms (products), so 6 of 16
    assert "| 32,000 | 21,333 | 42,667 | **0.75** | 1,234 | 38% |" in row
    assert "| 0 Conv2d | bytes | 3.00 | 5.00 | 4.00 | 50% |" in text
    assert "| 0 Linear | products | 3.00 | 5.00 | 2.00 | 25% |" in text
    assert "driver 580; 2026-01-31" in text and "`python x`" in text


def test_cuda_benchmark_saves_its_page_after_every_task(load, tmp_path):
    gpu = load("gpu")
    for words in (["1024", "tf32"], ["512", "bf16"], ["512", "bf16"]):
        task = gpu.chosen(["training", "vgg16", *words])[0]
        result = gpu.measure(task, ["scratchnet"], lambda program, t: answer_of(t, 1.0))
        text = gpu.add_to_page(result, tmp_path / "day-gpu")
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| training")]
    assert rows == [f"training vgg16 32 px batch {rest}" for rest in ("512 bf16", "1024 tf32")]
    assert (tmp_path / "day-gpu.md").read_text(encoding="utf-8") == text


def test_cuda_benchmark_leaves_out_a_contender_that_computes_something_else(load):
    gpu, race = load("gpu"), load("race")
    task = gpu.chosen(["training", "512", "vgg16", "fp32"])[0]

    def worker(program, task):
        if task["contender"] == "compile":
            raise race.WorkerError("no compiler")
        return answer_of(task, 1.0, (2.3, 2.2) if task["contender"] == "scratchnet" else (2.3, 2.1))

    result = gpu.measure(task, list(gpu.CONTENDERS), worker)
    assert list(result["contenders"]) == ["scratchnet"]
    different, missing = result["remarks"]
    assert "differ by 4.3e-02" in different and "no compiler" in missing
    assert "left out" in gpu.page({"results": [result], **MACHINE})

    def failing(program, task):
        raise race.WorkerError("out of memory")

    with pytest.raises(race.WorkerError, match="training vgg16 32 px batch 512 fp32: out of memory"):
        gpu.measure(task, list(gpu.CONTENDERS), failing)


@pytest.mark.parametrize(
    "words", [["training", "vgg16-bn", "128", "bf16"], ["inference", "vgg16", "128", "fp32"]]
)
def test_cuda_benchmark_runs_on_the_emulator(stand_in, load, words):
    gpu = load("gpu")
    task = {**gpu.chosen(words)[0], **TINY, "contender": "scratchnet"}
    work = load("gpu_contenders").work
    answer = work(task)
    assert len(answer["seconds"]) == 1 and np.isfinite(answer["first"]).all()
    assert all(group["seconds"]["forward"] > 0 for group in answer["groups"])
    assert all((group["seconds"]["backward"] > 0) == ("training" in words) for group in answer["groups"])
    assert min(answer["speeds"].values()) > 0
    pytest.importorskip("torch")
    rival = work({**task, "contender": "channels_last", "torch_device": "cpu"})
    gpu.check_agreement(answer["first"], rival["first"], gpu.AGREEMENT[task["precision"]])


def test_cuda_record_runs_on_the_emulator_and_its_twin_sees_the_same(stand_in, load):
    record = load("record")
    task = {
        "arch": "vgg11",
        "width": 0.0625,
        "classifier_width": 8,
        "batch_size": 5,
        "epochs": 1,
        "seeds": 2,
        "precision": "fp32",
        "threads": 1,
        "shapes10": {"n_train": 10, "n_test": 10},
        "torch_device": "cpu",
    }
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    progress = measurements.Silent()
    saved = []

    def save_so_far(measured):
        saved.append(len(measured["runs"]))

    measured = record.measure(
        task, list(record.CONTENDERS), progress, lambda program, t: record.work(t), save_so_far
    )
    assert saved == [1, 2, 3, 4]
    own, twin = measured["runs"][:2]
    assert own["losses"] == pytest.approx(twin["losses"], rel=1e-3)
    text = record.page({**measured, **MACHINE})
    assert "vgg11-bn on shapes10" in text and text.count(" ± ") == 4 and "over 2 seeds" in text


@pytest.mark.parametrize("name", ["crop-flip", "crop2"])
def test_cuda_record_gives_pytorch_the_images_of_the_loader(load, name):
    torch = pytest.importorskip("torch")
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 6, 3), dtype=np.uint8)
    loading = {"augmentation": data.Augmentation.named(name), "normalisation": data.Normalisation.of(images)}
    loader = data.Loader(images, np.arange(7), 3, shuffle=True, **loading)
    batches = load("record").torch_batches(torch.from_numpy(images), torch.arange(7), loader, 2)
    for (x, y), (expected, labels) in zip(batches, loader.epoch(2), strict=True):
        np.testing.assert_allclose(x.permute(0, 2, 3, 1).numpy(), expected, atol=1e-6)
        np.testing.assert_array_equal(y.numpy(), labels)


def test_without_a_gpu_cuda_benchmarks_end_with_a_sentence(load, capsys):
    try:
        backend.get("cupy")
    except backend.BackendError:
        pass
    else:
        pytest.skip("there is a GPU")
    assert load("gpu").main(["--only", "training", "128", "fp32"]) == 2
    said = capsys.readouterr().err.strip()
    assert "--backend numpy" in said and "\n" not in said
