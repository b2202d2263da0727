"""The doctor's rules, floor by floor; ``doctor.py`` derives them. Each yields what it finds in a case."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import log, prod, sqrt
from statistics import fmean, median
from typing import Any

import numpy as np

from scratchnet.backend import to_numpy
from scratchnet.layers import BatchNorm2d, Dropout, ReLU
from scratchnet.training.diagnosis import Verdict
from scratchnet.training.examination import ENOUGH_PAIRS, Case, Heard, alikeness, norm, rms

RATE = "lower the learning rate, or warm it up"
LOOK_AT_LABELS = "Look at images with their labels: they must be shuffled together, or not at all."
HE = "initialise by He (init='he'), or put batch normalisation after the convolutions"


def _no_numbers(case: Case) -> Iterator[Verdict]:
    if case.not_finite:
        leap = f" The loss had risen to {case.leap[1]:.3g} by step {case.leap[0]}." if case.leap else ""
        reason, _, advice = case.not_finite.rpartition(": ")
        yield Verdict(
            "not finite", "", f"NaN or infinity {reason.removeprefix('it ')}.{leap}", _sentence(advice)
        )


def _images_alike(case: Case) -> Iterator[Verdict]:
    if case.input_signal <= 1e-6 * rms(case.x):
        yield Verdict(
            "images all alike",
            "",
            f"The images differ by {case.input_signal:.1e}, at values of {rms(case.x):.1e}.",
            "Look at what the loader hands out.",
        )


def _not_normalised(case: Case) -> Iterator[Verdict]:
    channels = case.x.reshape(-1, case.x.shape[-1] if case.x.ndim == 4 else 1)
    mean, std = (to_numpy(value).astype("float64") for value in (channels.mean(axis=0), channels.std(axis=0)))
    worst = int(np.argmax(np.maximum(abs(mean) / std, np.maximum(std, 1 / std))))
    if (abs(mean) > std).any() or (std > 10.0).any() or (std < 0.1).any():
        yield Verdict(
            "data not normalised",
            "",
            f"Channel {worst} of the images has mean {mean[worst]:.3g} and standard deviation "
            f"{std[worst]:.3g}, where weights are made for 0 and 1.",
            "Subtract each channel's mean and divide by its standard deviation (data.Normalisation.of).",
        )


def _classes_missing(case: Case) -> Iterator[Verdict]:
    counts = np.bincount(case.labels, minlength=case.classes)
    missing = [str(k) for k in np.flatnonzero(counts == 0)]
    by_chance = case.classes * (1.0 - 1.0 / case.classes) ** len(case.labels)
    if (missing and counts.mean() > 12.0) or len(missing) > by_chance + 4.0 * sqrt(by_chance) + 1.0:
        yield Verdict(
            "classes missing",
            "",
            f"{len(missing)} of the network's {case.classes} outputs have no image among {len(case.labels)}: "
            f"{', '.join(missing[:10])}{', ...' if len(missing) > 10 else ''}.",
            "Compare num_classes with the labels, and shuffle the images before they are cut into batches.",
        )


def _zero_weights(case: Case) -> Iterator[Verdict]:
    for sign in case.layers:
        if sign.size == 0.0:
            yield Verdict(
                "zero weights",
                sign.path,
                "All weights are zero, so nothing passes, neither the images on the way forward nor the "
                "gradient on the way back.",
                _sentence(HE),
            )


def _equal_weights(case: Case) -> Iterator[Verdict]:
    for sign in case.layers:
        w = max(sign.weights, key=lambda p: p.size).data
        largest = float(abs(w).max())
        if w.shape[-1] > 1 and 0.0 < largest and float(abs(w - w[..., :1]).max()) <= 1e-6 * largest:
            yield Verdict(
                "equal weights",
                sign.path,
                f"All {w.shape[-1]} units have the same weights, so they put out the same, get the same "
                "gradient and stay one unit for ever.",
                "Initialise with random numbers, as init='he' does.",
            )


def _squashed(case: Case) -> Iterator[Verdict]:
    smallest, sums = case.logits.min(), case.logits.sum(axis=1)
    what = ""
    if smallest >= 0.0 and abs(sums - 1.0).max() < 1e-3:
        what = "The outputs are probabilities already, and softmax of them is never far from 1 / K"
    elif isinstance(case.heard[-1].layer, ReLU):
        what = (
            f"The outputs went through a ReLU, so that {100 * (case.logits == 0).mean():.0f} % of them are 0"
        )
    if what:
        yield Verdict(
            "output squashed",
            case.heard[-1].path,
            f"{what}: the loss takes logits, and does its softmax itself.",
            "Remove what follows the last layer with weights.",
        )


def _dead(case: Case) -> Iterator[Verdict]:
    # What has vanished from the start comes to rest at the biases, which may leave most units dead, too.
    yield from _dying(case, 0.75 if case.leap and case.stuck else 1.0)


def _mostly_dead(case: Case) -> Iterator[Verdict]:
    if case.stuck:
        yield from _dying(case, 0.75)


def _dying(case: Case, share: float) -> Iterator[Verdict]:
    relus = [sign for sign in case.heard if sign.dead is not None]
    sign = max(relus, key=lambda sign: sign.dead, default=None)  # the first of those that are worst
    if sign is None or sign.dead < share:
        return
    units = "All" if sign.dead == 1.0 else f"{100 * sign.dead:.0f} % of the"
    reason = f"{units} units are zero for every image, so neither signal nor gradient passes them"
    if case.leap:
        reason += f", after the loss had leapt to {case.leap[1]:.3g} at step {case.leap[0]}"
    advice = f"{_sentence(RATE)[:-1]}, and begin anew: dead units do not come back."
    if not case.step and not case.leap:
        advice = f"Look at its biases and at what comes in. If the network was trained: {RATE}."
    yield Verdict("dead", sign.path, f"{reason}; the loss is {case.loss:.4f}.", advice)


def _exploding(case: Case) -> Iterator[Verdict]:
    out = case.logits.std()
    if not (out > 30.0 * case.input_std and case.loss > 3.0 * case.ignorance and case.by_chance):
        return
    sizes = [case.input_std, *(sign.std for sign in case.layers)]
    at, alone = _culprit(sizes, lambda size: size > 10.0 * case.input_std)
    if alone and at == len(case.layers) - 1:
        return  # softmax alone is saturated
    growth = (out / case.input_std) ** (1.0 / len(case.layers))
    how = f"by a factor of {growth:.2g} a layer" if not alone else "most of it in this layer"
    reason = f"Activations grow from {case.input_std:.2g} at the images to {out:.2g} at the output, {how}"
    if case.leap:
        reason += f", since the loss leapt to {case.leap[1]:.3g} at step {case.leap[0]}"
    yield Verdict(
        "learning rate too high" if case.leap else "exploding",
        case.layers[at].path,
        f"{reason}; the loss is {case.loss:.3g}.",
        _sentence(RATE if case.leap else HE),
    )


def _vanishing(case: Case) -> Iterator[Verdict]:
    out = float(np.sqrt(((case.logits - case.logits.mean(axis=0)) ** 2).mean()))
    if out > 1e-3 or case.error < 0.1 or _ends_small(case):
        return
    signals = [case.input_signal, *(sign.signal for sign in case.layers)]
    at, alone = _culprit(signals, lambda signal: signal < 0.01 * case.input_signal)
    fall = (out / case.input_signal) ** (1.0 / len(case.layers))
    how = "most of it in this layer" if alone else f"by a factor of {fall:.2g} a layer"
    reason = (
        f"What differs from image to image falls from {case.input_signal:.2g} at the images to {out:.1e} "
        f"at the output, {how}, so that the loss is {case.loss:.4f}, close to ln {case.classes}, and the "
        f"smallest gradient {min(sign.gradient for sign in case.layers):.0e} of its weights: no learning "
        "rate helps."
    )
    decay = case.optimizer.weight_decay if case.optimizer is not None else 0.0
    if case.leap:
        reason += f" The loss had leapt to {case.leap[1]:.3g} at step {case.leap[0]}."
        yield Verdict("dead", case.layers[at].path, reason, f"{_sentence(RATE)[:-1]}, and begin anew.")
    elif case.step and decay and median(_next_to_he(sign) for sign in case.layers) < 0.3:
        yield _too_strong(case, f"Weights have shrunk to nothing: {reason[0].lower()}{reason[1:]}")
    else:
        yield Verdict("vanishing", case.layers[at].path, reason, _sentence(HE))


def _other_labels(case: Case) -> Iterator[Verdict]:
    """Networks that are too large at the start are sure of one or two classes, for all images."""
    named = len(set(case.logits.argmax(axis=1)))
    unknown = case.by_chance and case.loss > 1.5 * case.ignorance and max(map(_next_to_he, case.layers)) < 3.0
    if unknown and case.sure > 0.6 and named > case.classes / 2:
        yield Verdict(
            "labels shuffled",
            "",
            f"Softmax is {100 * case.sure:.0f} % sure of its answers, tells {named} classes apart and is "
            "right by chance only: the network has learned other labels than these.",
            LOOK_AT_LABELS,
        )


def _saturated_softmax(case: Case) -> Iterator[Verdict]:
    sure = case.sure
    if not (case.loss > 4.0 * case.ignorance and sure > 0.9 and case.by_chance):
        return
    sign = max(case.layers, key=_next_to_he)
    if _next_to_he(sign) < 3.0:
        sign = case.layers[-1]
    yield Verdict(
        "saturated",
        sign.path,
        f"Softmax is {100 * sure:.0f} % sure of its answers and wrong, with logits of "
        f"{rms(case.logits):.3g}: the loss is {case.loss:.3g}, knowing nothing is {case.ignorance:.2f}.",
        f"Make the weights and biases of this layer smaller; {HE}.",
    )


def _saturated_activation(case: Case) -> Iterator[Verdict]:
    for sign in case.heard:
        common = isinstance(sign.layer, (ReLU, Dropout))
        if not sign.weights and not common and sign.flat is not None and sign.flat > 0.9:
            yield Verdict(
                "saturated",
                sign.path,
                f"{100 * sign.flat:.0f} % of the outputs of {type(sign.layer).__name__} let less than a "
                "hundredth of the gradient through: its inputs lie where it is flat.",
                "Make the weights before it smaller, normalise its input, or use ReLU.",
            )
            return


def _vanishing_gradient(case: Case) -> Iterator[Verdict]:
    if case.error < 1e-3 or _ends_small(case):
        return
    weak = [sign for sign in case.layers if sign.gradient < 1e-5 * case.error]
    if weak and any(sign.gradient > 0.0 for sign in weak):
        sign = min(weak, key=lambda sign: sign.gradient)
        yield Verdict(
            "vanishing",
            sign.path,
            f"The gradient is {sign.gradient:.0e} of the weights here and "
            f"{max(sign.gradient for sign in case.layers):.0e} where it is largest: it is lost on the way "
            "back.",
            f"Use ReLU, and {HE}.",
        )


def _renumbered(case: Case) -> Iterator[Verdict]:
    guesses = case.logits.argmax(axis=1)
    table = np.zeros((case.classes, case.classes), int)
    np.add.at(table, (guesses, case.labels), 1)
    best = table.argmax(axis=1)  # the label that images named k mostly have
    named = table.sum(axis=1) > 0
    share = table.max(axis=1).sum() / len(guesses)
    one_to_one = len(set(best[named])) == named.sum()
    if named.sum() > case.classes / 2 and one_to_one and share > 0.6 and case.accuracy < 0.5 * share:
        k = int(np.flatnonzero(named & (best != np.arange(case.classes)))[0])
        yield Verdict(
            "labels renumbered",
            "",
            f"{100 * share:.0f} % of the answers would be right if classes were numbered otherwise, and "
            f"{100 * case.accuracy:.0f} % are: what the network calls {k} is labelled {best[k]}.",
            "Put the class names into the order that the network was trained with.",
        )


def _frozen(case: Case) -> Iterator[Verdict]:
    if case.error < 1e-6:
        return
    learned = None if case.optimizer is None else {id(p) for p in case.optimizer.parameters.values()}
    for sign in case.heard:
        why = ""
        if sign.weights and not all(p.has_grad for p in sign.weights):
            why = "Its backward sets no gradient"
        elif sign.weights and sign.gradient == 0.0:
            why = "Its gradient is exactly zero, although signal and error are not"
        elif learned is not None and not all(id(p) in learned for p in sign.weights):
            why = "The optimizer does not have its weights"
        if why:
            yield Verdict(
                "frozen",
                sign.path,
                f"{why}, so {type(sign.layer).__name__} never changes.",
                "Look at the backward of this layer and the one behind it, and give SGD all parameters.",
            )


def _wrong_gradient(case: Case) -> Iterator[Verdict]:
    if case.step or _ends_small(case):  # a backward that is wrong is so from the beginning
        return
    case.set_mode()
    parameters = {name: p for name, p in case.net.parameters().items() if p.has_grad}
    norms = {name: norm(p.grad) for name, p in parameters.items()}
    # Large enough to be seen in the loss, and next to the rounding of the weights.
    rounding = 25.0 * float(np.finfo(case.x.dtype).eps)
    seen = max(norms[name] * norm(p.data) for name, p in parameters.items())
    size = max(1e-4 * max(1.0, case.loss) / len(norms), rounding * seen)
    directions: dict[str, tuple[int, Any]] = {}
    for name, p in parameters.items():
        scale = 1.0 if p.ndim == 1 else rms(p.data)
        above_noise = norms[name] > 1e-4 * max(norms.values())
        if above_noise and size <= 0.02 * scale * sqrt(p.size) * norms[name]:  # short enough for a slope
            directions[name] = (id(p), p.grad / norms[name] / norms[name])

    def slope(names: Sequence[str]) -> float:
        shift = dict(directions[name] for name in names)
        return (case.loss_at(shift, size) - case.loss_at(shift, -size)) / (2.0 * size)

    if not directions or abs(slope(list(directions)) / len(directions) - 1.0) < 0.02:
        return
    for name in reversed(directions):  # backward runs from the last to the first, and an error with it
        found = slope([name])
        if abs(found - 1.0) > 0.3:
            yield Verdict(
                "wrong gradient",
                name,
                f"Along this gradient the loss changes by {found:.2f} times what the gradient foretells.",
                "Check the backward of this layer and of those behind it (gradcheck.check_layer).",
            )
            return


def _running_statistics(case: Case) -> Iterator[Verdict]:
    norms = [sign for sign in case.heard if isinstance(sign.layer, BatchNorm2d)]
    if not norms or case.loss > 0.5 * case.ignorance:
        return
    for _, layer in case.net.walk():
        layer.training = False
    logits = case.net.forward(case.x)
    loss = float(case.criterion.forward(logits, case.labels))
    if not loss < 0.9 * case.ignorance:
        yield Verdict(
            "running statistics off",
            norms[0].path,
            f"With the batch's own statistics the loss is {case.loss:.3g}, with the running ones {loss:.3g}: "
            "what batch normalisation tracked is not what the layers see.",
            "Track them in training mode, with a momentum near 0.1, and save them with the weights.",
        )


def _too_strong(case: Case, reason: str) -> Verdict:
    decay = case.optimizer.weight_decay
    return Verdict(
        "weight decay too strong", "", reason, f"Lower the weight decay of {decay:g}; 5e-4 is usual."
    )


def _weight_decay(case: Case) -> Iterator[Verdict]:
    if case.optimizer is None:
        return
    shrinks = case.highest_lr * case.optimizer.weight_decay / max(1.0 - case.momentum, 1e-3)
    if shrinks > 0.01:
        yield _too_strong(case, f"Decay alone takes {100 * shrinks:.2g} % off the weights at every step.")


def _dropout(case: Case) -> Iterator[Verdict]:
    for sign in case.heard:
        if isinstance(sign.layer, Dropout) and sign.layer.p > 0.8:
            p = sign.layer.p
            noise = "no signal is left" if p == 1.0 else f"the noise is {p / (1 - p):.1f} times the signal"
            yield Verdict(
                "dropout too high",
                sign.path,
                f"It keeps {100 * (1 - p):.2g} % of the activations: {noise}.",
                "Drop half of them at most.",
            )


def _rate_too_high(case: Case) -> Iterator[Verdict]:
    normalised = any(isinstance(sign.layer, BatchNorm2d) for sign in case.heard)
    limit = 1.0 if normalised else 0.2
    updates = [sign.update for sign in case.layers if sign.update is not None]
    if updates and median(updates) > limit:
        largest = max(case.layers, key=lambda sign: sign.update)
        yield Verdict(
            "learning rate too high",
            largest.path,
            f"A step changes weights by {median(updates):.2g} of themselves in the median layer, and by "
            f"{largest.update:.2g} in this one.",
            f"{_sentence(RATE)[:-1]}: a hundredth is a good step.",
        )
        return
    if not normalised and case.lr:
        shift = {id(p): p.grad for p in case.net.parameters().values() if p.has_grad}
        case.set_mode()
        after = case.loss_at(shift, -case.lr)
        if not after < 3.0 * max(case.loss, case.ignorance):
            yield Verdict(
                "learning rate too high",
                "",
                f"One step takes the loss of the very same images from {case.loss:.3g} to {after:.3g}.",
                _sentence(RATE),
            )
            return
    if case.leap and case.stuck:
        yield Verdict(
            "learning rate too high",
            "",
            f"The loss leapt to {case.leap[1]:.3g} at step {case.leap[0]}, and is {case.loss:.3g} now.",
            _sentence(RATE),
        )


def _rate_too_low(case: Case) -> Iterator[Verdict]:
    if not case.lr or case.error < 0.1 or _ends_small(case):
        return
    update = median(sign.update for sign in case.layers) * case.highest_lr / case.lr
    stuck = len(case.losses) >= 300 and fmean(case.losses[-100:]) > 0.99 * case.ignorance
    if update < (1e-4 if stuck else 1e-5) * case.error:
        yield Verdict(
            "learning rate too low",
            "",
            f"A step changes weights by {update:.1e} of themselves in the median layer: it takes "
            f"{1 / update:,.0f} steps to make others of them."
            if update
            else "A step changes nothing.",
            "Raise the learning rate: a thousandth is a good step.",
        )


def _labels(case: Case) -> Iterator[Verdict]:
    recent = fmean(case.losses[-100:]) if len(case.losses) >= 300 else 0.0
    last = case.epochs[-1] if case.epochs else None
    chance = 1.0 / case.classes
    if recent > 0.99 * case.ignorance:
        reason = (
            f"After {case.step} steps the training loss is {recent:.4f}, ln {case.classes} is "
            f"{case.ignorance:.4f}, although signal, gradients and steps are sound: nothing in the "
            "images tells the labels."
        )
    elif last and last["val_accuracy"] < 1.3 * chance and last["train_accuracy"] > 2.0 * chance:
        reason = (
            f"Training images are learned by heart, {100 * last['train_accuracy']:.0f} % of them, and of "
            f"validation images {100 * last['val_accuracy']:.0f} % are right, which is guessing."
        )
    elif self_evident := _no_trace(case):
        reason = self_evident
    else:
        return
    yield Verdict("labels shuffled", "", reason, LOOK_AT_LABELS)


def _no_trace(case: Case) -> str:
    """Return a sentence where images with one label are no more alike than images with two."""
    if case.pairs < ENOUGH_PAIRS or not _has_structure(case.x):
        return ""
    views = [alikeness(case.x), *(sign.alike for sign in case.heard if sign.alike is not None)]
    rng = np.random.default_rng(0)
    shuffled = [rng.permutation(case.labels) for _ in range(100)]
    best = -float("inf")
    for alike in views:
        by_chance = [_same(alike, labels) for labels in shuffled]
        best = max(best, float((_same(alike, case.labels) - np.mean(by_chance)) / np.std(by_chance)))
    if best > 3.0:
        return ""
    return (
        f"Images with the same label are no more alike than others, in no layer: {best:.1f} standard "
        "deviations above chance at most."
    )


def _same(alike: np.ndarray, labels: np.ndarray) -> float:
    return float(alike[labels[:, None] == labels[None, :]].sum())


def _has_structure(x: Any) -> bool:
    """Tell images, in which neighbouring pixels are alike, from noise, which no label can be read from."""
    if x.ndim != 4 or x.shape[2] < 2:
        return False
    x = x - x.mean(axis=(0, 1, 2))
    return float((x[:, :, 1:] * x[:, :, :-1]).mean()) > 0.3 * float((x * x).mean())


def _overfitting(case: Case) -> Iterator[Verdict]:
    if len(case.epochs) < 3:
        return
    best = min(range(len(case.epochs)), key=lambda i: case.epochs[i]["val_loss"])
    since, first, last = case.epochs[best + 1 :], case.epochs[best], case.epochs[-1]
    rising = len(since) >= 2 and all(row["val_loss"] > 1.1 * first["val_loss"] for row in since[-2:])
    if rising and last["train_loss"] < first["train_loss"] and last["train_loss"] < 0.7 * last["val_loss"]:
        yield Verdict(
            "overfitting",
            "",
            f"Validation loss rose from {first['val_loss']:.3g} after epoch {best + 1} to "
            f"{last['val_loss']:.3g}, while training loss fell from {first['train_loss']:.3g} to "
            f"{last['train_loss']:.3g}.",
            "Stop earlier, or take more images, augmentation, dropout or weight decay.",
        )


Rule = Callable[[Case], Iterator[Verdict]]

FLOORS: tuple[tuple[Rule, ...], ...] = (
    (_no_numbers,),
    (_images_alike,),
    (_not_normalised, _classes_missing),
    (_zero_weights, _equal_weights),
    (_squashed,),
    (_dead,),
    (_saturated_activation,),
    (_exploding,),
    (_vanishing,),
    (_mostly_dead,),
    (_renumbered,),
    (_other_labels,),
    (_saturated_softmax,),
    (_vanishing_gradient,),
    (_frozen, _wrong_gradient),
    (_running_statistics,),
    (_weight_decay, _rate_too_high, _dropout),
    (_rate_too_low,),
    (_labels, _overfitting),
)


def _culprit(sizes: Sequence[float], beyond: Callable[[float], bool]) -> tuple[int, bool]:
    """Return the layer that changes the size most, and True, if it alone makes half of the whole change.

    Otherwise return the first layer whose size is ``beyond``, or the last, and False. ``sizes[0]`` is the
    input's.
    """
    logs = [log(max(size, 1e-300)) for size in sizes]
    jumps = [after - before for before, after in zip(logs[:-1], logs[1:], strict=True)]
    total = logs[-1] - logs[0]
    largest = max(range(len(jumps)), key=lambda i: jumps[i] / total)
    if jumps[largest] / total > 0.5 and len(jumps) > 2:
        return largest, True
    return next((i for i, size in enumerate(sizes[1:]) if beyond(size)), len(jumps) - 1), False


def _next_to_he(sign: Heard) -> float:
    """Return how large the weights are, as a multiple of He's."""
    w = max(sign.weights, key=lambda p: p.size)
    return rms(w.data) * sqrt(prod(w.shape[:-1]) / 2.0)


def _ends_small(case: Case) -> bool:
    """Whether the last layer alone makes logits small: it learns at once, and then lets the gradient back."""
    *before, last = case.layers
    arrives = bool(before) and before[-1].signal > 0.01 * case.input_signal
    return arrives and 0.0 < _next_to_he(last) < 0.03


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
