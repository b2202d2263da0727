"""The doctor's rules, tier by tier, and what each threshold is derived from.

What comes first can cause what comes later: pixels that are not normalised explode, zero weights vanish. So
the rules stand in tiers, numbers, data, weights, signal, gradient, step, course of training, and the first
tier in which something is wrong speaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import comb, log, prod, sqrt
from statistics import fmean, median

import numpy as np

from scratchnet.backend import Array, to_numpy
from scratchnet.doctor.context import ENOUGH_PAIRS, Context, LayerStats, cosine_similarity, rms
from scratchnet.doctor.diagnosis import Verdict
from scratchnet.layers import BatchNorm2d

SLOWER = "lower the learning rate, or warm it up"
HE = "initialise by He (init='he'), or put batch normalisation after the convolutions"
LOOK_AT_LABELS = "Look at images with their labels: they must be shuffled together, or not at all."

# Numbers and data

# He's weights are derived for inputs with mean 0 and mean square 1. Of a channel whose mean exceeds its
# standard deviation more than half of the mean square is the same for every image.
MAX_MEAN = 1.0  # standard deviations
# Inputs of size s make the first layer's gradient s times as large: at 10 no learning rate suits both it
# and the layers that follow, which see a size of 1 where there is batch normalisation.
MAX_STD = 10.0
# By chance, one batch in 100,000: nobody looks at so many.
RARE = 1e-5


def _not_finite(context: Context) -> Iterator[Verdict]:
    if context.not_finite:
        reason, _, advice = context.not_finite.rpartition(": ")
        spike = f" Before, {context.loss_spike}." if context.loss_spike else ""
        reason = f"NaN or infinity {reason.removeprefix('it ')}.{spike}"
        yield Verdict("not finite", "", reason, _sentence(advice))


def _not_normalised(context: Context) -> Iterator[Verdict]:
    x = context.x
    channels = x.reshape(-1, x.shape[-1] if x.ndim == 4 else 1)
    mean, std = (to_numpy(value).astype("float64") for value in (channels.mean(axis=0), channels.std(axis=0)))
    wrong = (abs(mean) > MAX_MEAN * std) | (std > MAX_STD) | (std < 1.0 / MAX_STD)
    if wrong.any():
        k = int(np.argmax(wrong))
        yield Verdict(
            "data not normalised",
            "",
            f"Channel {k} of the images has mean {mean[k]:.3g} and standard deviation {std[k]:.3g}, where "
            "weights are made for 0 and 1.",
            "Subtract each channel's mean and divide by its standard deviation (data.Normalisation.of).",
        )


def _images_alike(context: Context) -> Iterator[Verdict]:
    if context.input_signal < SMALL_LOGITS:
        reason = f"The images differ by {context.input_signal:.1e} only, so nothing tells one from another."
        yield Verdict("images all alike", "", reason, "Look at what the loader returns.")


def _classes_missing(context: Context) -> Iterator[Verdict]:
    """Of K classes m are missing among N images drawn at random with at most C(K, m) (1 - m/K)^N."""
    K, N = context.classes, len(context.labels)
    missing = [str(k) for k in np.flatnonzero(np.bincount(context.labels, minlength=K) == 0)]
    m = len(missing)
    if m and comb(K, m) * (1.0 - m / K) ** N < RARE:
        yield Verdict(
            "classes missing",
            "",
            f"{m} of the network's {K} outputs have no image among {N}: "
            f"{', '.join(missing[:10])}{', ...' if m > 10 else ''}.",
            "Compare num_classes with the labels, and shuffle the images before they are cut into batches.",
        )


# Weights and signal

# Symmetric weights switch a unit off for an image with probability 1/2; at worst, where deep layers make
# all images look alike, half of the units are dead at the start. Half-way from there to all, three
# quarters, is no chance.
MANY_DEAD = 0.75
# With K = 10, logits that differ by 16 make softmax sure to one in a million, so learning has no reason
# to go further; 30 is about twice that, and takes five layers that each double what they get.
LARGE_LOGITS = 30.0
# Logits of size s move the loss by 2 s at most: below 0.001 it is ln K to two digits, whatever the labels
# are.
SMALL_LOGITS = 1e-3
# Even a learning rate of 1 over 10,000 steps moves a weight by 10,000 times its gradient at most, so from a
# gradient over weight below this nothing is learned: it changes no weight by a tenth.
SMALL_GRADIENT = 1e-5
# A last layer that alone makes logits small still learns, and lets the gradient back after a few steps of a
# hundredth each: it is on purpose (output_scale) that weights are far below He's while a signal arrives.
SMALL_LAST_LAYER = 0.03  # times He's
ARRIVING_SIGNAL = 0.01  # of the images'
# An error |p - t| of 0.1 per image leaves a tenth of the gradient that an ignorant network has, and thus
# something to learn.
ENOUGH_ERROR = 0.1


def _zero_weights(context: Context) -> Iterator[Verdict]:
    for stats in context.layers:
        if stats.size == 0.0:
            yield Verdict(
                "zero weights",
                stats.path,
                "All weights are zero, so nothing passes, neither the images on the way forward nor the "
                "gradient on the way back.",
                _sentence(HE),
            )


def _dead(context: Context) -> Iterator[Verdict]:
    """A unit that is zero for every image and pixel gets no gradient, so it never comes back.

    When all units of a layer are dead, what follows sees nothing: logits are constants, the loss ln K. A step
    that was too large does that, by moving weights and biases below zero for every input; the loss before it
    tells. A signal that vanished from the start ends at the biases, which may leave most units dead, too: so
    without a spike only a whole layer counts.
    """
    spike = context.loss_spike
    stats = max(context.stats, key=lambda stats: stats.dead or 0.0)  # the first of the worst
    dead = stats.dead or 0.0
    if dead < 1.0 and not (spike and context.by_chance and dead >= MANY_DEAD):
        return
    reason = (
        f"{100 * dead:.0f} % of the units are zero for every image, so neither signal nor gradient passes"
        f" them{f', after {spike}' if spike else ''}; the loss is {context.loss:.4f}."
    )
    advice = f"{_sentence(SLOWER)[:-1]}, and begin again: dead units do not come back."
    if not context.step and not spike:
        advice = f"Look at its biases and at what comes in. If the network was trained: {SLOWER}."
    yield Verdict("dead", stats.path, reason, advice)


def _exploding(context: Context) -> Iterator[Verdict]:
    """A layer that multiplies the signal by q each time leaves q^16 of it after sixteen, here for q > 1."""
    out, spike = rms(context.logits - context.logits.mean()), context.loss_spike
    # What has learned the labels, and what has learned others, has large logits, too, with a small loss or
    # at weights of He's size.
    if out < LARGE_LOGITS or context.loss < context.chance_loss or not context.by_chance:
        return
    stats, growth = _largest_change([(context.input_std, None), *((s.std, s) for s in context.layers)])
    yield Verdict(
        "learning rate too high" if spike else "exploding",
        stats.path,
        f"Activations grow from {context.input_std:.2g} at the images to {out:.2g} at the output, by a "
        f"factor of {growth:.2g} in this layer{f', since {spike}' if spike else ''}; the loss is "
        f"{context.loss:.3g}, knowing nothing is {context.chance_loss:.2f}.",
        _sentence(SLOWER if spike else HE),
    )


def _vanishing(context: Context) -> Iterator[Verdict]:
    """A layer that multiplies the signal by q < 1 each time; and then every gradient vanishes, too.

    A ReLU network without biases is homogeneous in the weights w of each layer: twice w is twice the logits
    z. Euler's theorem says then <w, dL/dw> = <z, dL/dz>, for every layer the same. Where the last layer alone
    makes logits small its own gradient stays, and it learns. Activations that saturate lose the gradient
    alone.
    """
    out = rms(context.logits - context.logits.mean(axis=0))
    weakest = min(context.learning, key=lambda stats: stats.gradient, default=None)
    if weakest is None or context.error < ENOUGH_ERROR or _ends_small(context):
        return
    if out < SMALL_LOGITS:
        sizes = [(context.input_signal, None), *((stats.signal, stats) for stats in context.layers)]
        stats, fall = _largest_change(sizes)
        spike = f" Before, {context.loss_spike}." if context.loss_spike else ""
        yield Verdict(
            "dead" if spike else "vanishing",
            stats.path,
            f"What differs from image to image falls from {context.input_signal:.2g} at the images to "
            f"{out:.1e} at the output, by a factor of {fall:.2g} in this layer, so that the loss is "
            f"{context.loss:.4f}, close to ln {context.classes}, and the smallest gradient "
            f"{weakest.gradient:.0e} of its weights: no learning rate helps.{spike}",
            f"{_sentence(SLOWER)[:-1]}, and begin again." if spike else _sentence(HE),
        )
    elif 0.0 < weakest.gradient < SMALL_GRADIENT * context.error:
        yield Verdict(
            "vanishing",
            weakest.path,
            f"The gradient is {weakest.gradient:.0e} of the weights here and "
            f"{max(stats.gradient for stats in context.layers):.0e} where it is largest: it is lost on "
            "the way back.",
            f"Use ReLU, and {HE}.",
        )


# Gradient and step

# An error of a millionth is that of float32's rounding: the network has learned everything, and a
# gradient of zero is correct.
NO_ERROR = 1e-6
# Near 0.001 of the weights per step is usual. At 0.2 five steps make a new network, faster than the other
# layers can follow (measured on plain VGG11 and VGG16 of several widths: those above it in the median
# layer did not learn). Before a batch normalisation, which takes the scale of weights away, a step at
# right angles to them lengthens them and makes the next smaller: there a step as long as the weights is
# the limit.
LARGE_UPDATE = 0.2
LARGE_UPDATE_NORMALISED = 1.0
# What one step of a suitable size does to the very same images is to lower their loss. Networks of the same
# measurement in which it tripled did not learn; a momentary rise by half is common.
LOSS_GROWTH = 3.0
# Weights take 100,000 steps to become others: 15 epochs of CIFAR-10 have 6,000.
SMALL_UPDATE = 1e-5


def _frozen(context: Context) -> Iterator[Verdict]:
    """A gradient of exactly zero, where signal and error are not, is a mistake in the code."""
    if context.error < NO_ERROR:
        return
    learned = None if context.optimizer is None else {id(p) for p in context.optimizer.parameters.values()}
    for stats in context.stats:
        weights = [p for p in stats.weights if p.trainable]
        why = ""
        if weights and not all(p.has_grad for p in weights):
            why = "Its backward sets no gradient"
        elif weights and stats.gradient == 0.0:
            why = "Its gradient is exactly zero, although signal and error are not"
        elif learned is not None and not all(id(p) in learned for p in weights):
            why = "The optimizer does not have its weights"
        if why:
            yield Verdict(
                "frozen",
                stats.path,
                f"{why}, so {type(stats.layer).__name__} never changes.",
                "Look at the backward of this layer and of the next, and give the optimizer all parameters.",
            )


def _rate_too_high(context: Context) -> Iterator[Verdict]:
    normalised = any(isinstance(stats.layer, BatchNorm2d) for stats in context.stats)
    updates = [stats.update for stats in context.learning if stats.update is not None]
    reason, where = "", ""
    if updates and median(updates) > (LARGE_UPDATE_NORMALISED if normalised else LARGE_UPDATE):
        largest = max(context.learning, key=lambda stats: stats.update or 0.0)
        where, reason = (
            largest.path,
            (
                f"A step changes weights by {median(updates):.2g} of themselves in the median layer, and by "
                f"{largest.update:.2g} in this one"
            ),
        )
    elif not normalised and context.lr:
        parameters = context.net.parameters().values()
        shift = {id(p): p.grad for p in parameters if p.grad is not None}
        context.set_mode()
        after = context.loss_at(shift, -context.lr)
        if not after < LOSS_GROWTH * max(context.loss, context.chance_loss):
            reason = f"One step takes the loss of the very same images from {context.loss:.3g} to {after:.3g}"
    if not reason and context.loss_spike and context.by_chance:
        reason = f"{context.loss_spike[0].upper()}{context.loss_spike[1:]}, and is {context.loss:.3g} now"
    if reason:
        advice = f"{_sentence(SLOWER)[:-1]}: steps of a hundredth or less are good."
        yield Verdict("learning rate too high", where, f"{reason}.", advice)


def _rate_too_low(context: Context) -> Iterator[Verdict]:
    updates = [stats.update for stats in context.learning if stats.update is not None]
    if not context.lr or not updates or context.error < ENOUGH_ERROR or _ends_small(context):
        return
    update = median(updates) * (context.highest_lr or context.lr) / context.lr
    if update < SMALL_UPDATE * context.error:
        yield Verdict(
            "learning rate too low",
            "",
            f"A step changes weights by {update:.1e} of themselves in the median layer: others take more "
            f"than {1 / SMALL_UPDATE:,.0f} steps.",
            "Raise the learning rate: steps of a thousandth are good.",
        )


# The course of training

# Half of ln K is no chance: the batch's labels are mostly known. Ninety per cent of it is next to nothing.
KNOWN, UNKNOWN = 0.5, 0.9  # of ln K
# The mean of 100 losses of 32 images or more, each known to 18 % of ln K, is known to 2 %; without any
# learning it is ln K and the little that noise adds. Before step 300 it may just not have begun.
STUCK_STEPS, STUCK_MEAN, STUCK = 300, 100, 0.99
# Memorising doubles the share of correct training images, and guessing stays guessing: over 1,000
# validation images of ten classes 0.1 is known to 0.0095, so 0.13 is three standard deviations above.
MEMORISED, GUESSED = 2.0, 1.3  # times 1/K
# Answers that softmax calls likelier than all others together are no answers of a new network, of which the
# likeliest class has some 1/K to 3/K; sure and wrong costs more than ln K.
CONFIDENT = 0.5
# Standard deviations above what shuffled labels give: chance passes it once in 700 batches.
NO_TRACE = 3.0
# Neighbouring pixels of photographs correlate by 0.8 and more, those of noise by 0.
IMAGE_LIKE = 0.3
# A mean over 1,000 validation images of spread 1 is known to 3 %: 10 % is three standard deviations.
RISEN = 1.1


def _running_statistics(context: Context) -> Iterator[Verdict]:
    norms = [stats for stats in context.stats if isinstance(stats.layer, BatchNorm2d)]
    if not norms or context.loss > KNOWN * context.chance_loss:
        return
    for _, layer in context.net.walk():
        layer.training = False
    loss = float(context.criterion.forward(context.net.forward(context.x), context.labels))
    if not loss < UNKNOWN * context.chance_loss:
        yield Verdict(
            "running statistics off",
            norms[0].path,
            f"With the batch's own statistics the loss is {context.loss:.3g}, with the running ones "
            f"{loss:.3g}: what batch normalisation tracked is not what the layers see.",
            "Track them in training mode, with a momentum near 0.1, and save them with the weights.",
        )


def _labels(context: Context) -> Iterator[Verdict]:
    recent = fmean(context.losses[-STUCK_MEAN:]) if len(context.losses) >= STUCK_STEPS else 0.0
    last = context.epochs[-1] if context.epochs else None
    chance = 1.0 / context.classes
    if recent > STUCK * context.chance_loss:
        reason = (
            f"After {context.step} steps the training loss is {recent:.4f}, ln {context.classes} is "
            f"{context.chance_loss:.4f}, although signal, gradients and steps are sound: nothing in the "
            "images tells the labels."
        )
    elif (
        last is not None
        and last["val_accuracy"] < GUESSED * chance
        and last["train_accuracy"] > MEMORISED * chance
    ):
        reason = (
            f"Training images are memorised, {100 * last['train_accuracy']:.0f} % of them, and of validation "
            f"images {100 * last['val_accuracy']:.0f} % are correct, which is guessing."
        )
    elif context.step and context.by_chance and context.mean_confidence > CONFIDENT:
        reason = (
            f"Softmax is {100 * context.mean_confidence:.0f} % sure of its answers and right by chance only: "
            "the network has learned other labels than these."
        )
    elif not (reason := _no_trace(context)):
        return
    yield Verdict("labels shuffled", "", reason, LOOK_AT_LABELS)


def _no_trace(context: Context) -> str:
    """Return a sentence where images with one label are no more alike than images with two.

    Images of one class are more alike, in their pixels or in what even random layers make of them. The sum of
    cosines over pairs with one label is compared with those after shuffling the labels.
    """
    if context.pairs < ENOUGH_PAIRS or not _looks_like_images(context.x):
        return ""
    found = [stats.similarity for stats in context.stats if stats.similarity is not None]
    rng, best = np.random.default_rng(0), -float("inf")
    shuffled = [rng.permutation(context.labels) for _ in range(100)]
    for similarity in (cosine_similarity(context.x), *found):
        by_chance = [_same_label(similarity, labels) for labels in shuffled]
        above = _same_label(similarity, context.labels) - float(np.mean(by_chance))
        best = max(best, above / float(np.std(by_chance)))
    if best > NO_TRACE:
        return ""
    return (
        f"Images with the same label are no more alike than others, in no layer: {best:.1f} standard "
        "deviations above chance at most."
    )


def _same_label(similarity: Array, labels: np.ndarray) -> float:
    return float(similarity[labels[:, None] == labels[None, :]].sum())


def _looks_like_images(x: Array) -> bool:
    """Tell images, in which neighbouring pixels are alike, from noise, which no label can be read from."""
    if x.ndim != 4 or x.shape[2] < 2:
        return False
    x = x - x.mean(axis=(0, 1, 2))
    return float((x[:, :, 1:] * x[:, :, :-1]).mean()) > IMAGE_LIKE * float((x * x).mean())


def _overfitting(context: Context) -> Iterator[Verdict]:
    """Twice in a row, as one epoch may be an accident, and with a training loss that goes on falling."""
    best = min(context.epochs, key=lambda row: row["val_loss"], default=None)
    if best is None or len(context.epochs) < 3:
        return
    *_, before, last = context.epochs
    rising = best is not before and all(row["val_loss"] > RISEN * best["val_loss"] for row in (before, last))
    if rising and last["train_loss"] < best["train_loss"]:
        yield Verdict(
            "overfitting",
            "",
            f"Validation loss rose from {best['val_loss']:.3g} to {last['val_loss']:.3g}, while training "
            f"loss fell from {best['train_loss']:.3g} to {last['train_loss']:.3g}.",
            "Stop earlier, or take more images, augmentation, dropout or weight decay.",
        )


Rule = Callable[[Context], Iterator[Verdict]]

RULE_TIERS: tuple[tuple[Rule, ...], ...] = (
    (_not_finite,),
    (_images_alike,),
    (_not_normalised, _classes_missing),
    (_zero_weights,),
    (_dead,),
    (_exploding,),
    (_vanishing,),
    (_frozen,),
    (_running_statistics,),
    (_rate_too_high,),
    (_rate_too_low,),
    (_labels, _overfitting),
)


def _largest_change(sizes: Sequence[tuple[float, LayerStats | None]]) -> tuple[LayerStats, float]:
    """Return the layer that changes the size most, in the direction of the whole change, and its factor."""
    logs = [log(max(size, 1e-300)) for size, _ in sizes]
    direction = 1.0 if logs[-1] > logs[0] else -1.0
    jumps = [direction * (after - before) for before, after in zip(logs[:-1], logs[1:], strict=True)]
    at = max(range(len(jumps)), key=jumps.__getitem__) + 1
    stats = sizes[at][1]
    assert stats is not None
    return stats, sizes[at][0] / max(sizes[at - 1][0], 1e-300)


def _ends_small(context: Context) -> bool:
    """Whether the last layer alone makes logits small: it learns at once, and then lets the gradient back."""
    if len(context.layers) < 2:
        return False
    *_, before, last = context.layers
    w = max(last.weights, key=lambda p: p.size)
    times_he = rms(w.data) * sqrt(prod(w.shape[:-1]) / 2.0)
    return before.signal > ARRIVING_SIGNAL * context.input_signal and 0.0 < times_he < SMALL_LAST_LAYER


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
