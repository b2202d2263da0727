"""The doctor's rules, tier by tier, and what each threshold is derived from.

What comes first can cause what comes later: pixels that are not normalised explode, zero weights vanish. So
the rules stand in tiers, numbers, data, weights, signal, gradient, step, course of training, and the first
tier in which something is wrong speaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import comb, log, prod, sqrt
from statistics import fmean

import numpy as np

from scratchnet import functional as F
from scratchnet.backend import Array, to_numpy
from scratchnet.doctor.context import ENOUGH_PAIRS, Context, LayerStats, cosine_similarity, rms
from scratchnet.doctor.diagnosis import Verdict
from scratchnet.training.finite import ADVICE

SLOWER = "Lower the learning rate, or warm it up"
HE = "Initialise by He (init='he'), or put batch normalisation after the convolutions"

# Numbers and data

# He's weights are derived for inputs with mean 0 and mean square 1. Of a channel whose mean exceeds its
# standard deviation more than half of the mean square is the same for every image.
MAX_MEAN = 1.0  # standard deviations
# Inputs of size s make the first layer's gradient s times as large: at 10 no learning rate suits both it
# and the layers that follow, which see a size of 1 where there is batch normalisation.
MAX_STD = 10.0
# By chance, one batch in 100,000: nobody looks at so many.
RARE = 1e-5


def _not_finite(c: Context) -> Iterator[Verdict]:
    if c.not_finite:
        reason, _, advice = c.not_finite.rpartition(": ")
        reason = f"NaN or infinity {reason.removeprefix('it ')}.{_before(c)}"
        yield Verdict("not finite", "", reason, f"{advice[0].upper()}{advice[1:]}.")


def _not_normalised(c: Context) -> Iterator[Verdict]:
    channels = c.x.reshape(-1, c.x.shape[-1] if c.x.ndim == 4 else 1)
    mean, std = (to_numpy(value).astype("float64") for value in (channels.mean(axis=0), channels.std(axis=0)))
    wrong = (abs(mean) > MAX_MEAN * std) | (std > MAX_STD) | (std < 1.0 / MAX_STD)
    if wrong.any():
        k = int(np.argmax(wrong))
        reason = (
            f"Channel {k} of the images has mean {mean[k]:.3g} and standard deviation {std[k]:.3g}, where "
            "weights are made for 0 and 1."
        )
        advice = "Subtract each channel's mean and divide by its standard deviation (data.Normalisation.of)."
        yield Verdict("data not normalised", "", reason, advice)


def _images_alike(c: Context) -> Iterator[Verdict]:
    if c.input.signal < SMALL_LOGITS:
        reason = f"The images differ by {c.input.signal:.1e} only, so nothing tells one from another."
        yield Verdict("images all alike", "", reason, "Look at what the loader returns.")


def _classes_missing(c: Context) -> Iterator[Verdict]:
    """Of K classes m are missing among N images drawn at random with at most C(K, m) (1 - m/K)^N."""
    K, N = c.classes, len(c.labels)
    missing = [str(k) for k in np.flatnonzero(np.bincount(c.labels, minlength=K) == 0)]
    m = len(missing)
    if m and comb(K, m) * (1.0 - m / K) ** N < RARE:
        shown = f"{', '.join(missing[:10])}{', ...' if m > 10 else ''}"
        reason = f"{m} of the network's {K} outputs have no image among {N}: {shown}."
        advice = (
            "Compare num_classes with the labels, and shuffle the images before they are cut into batches."
        )
        yield Verdict("classes missing", "", reason, advice)


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


def _zero_weights(c: Context) -> Iterator[Verdict]:
    reason = (
        "All weights are zero, so nothing passes, neither the images on the way forward nor the gradient on "
        "the way back."
    )
    for stats in c.layers:
        if stats.size == 0.0:
            yield Verdict("zero weights", stats.path, reason, f"{HE}.")


def _dead(c: Context) -> Iterator[Verdict]:
    """A unit that is zero for every image and pixel gets no gradient, so it never comes back.

    When all units of a layer are dead, what follows sees nothing: logits are constants, the loss ln K. A step
    that was too large does that, by moving weights and biases below zero for every input; the loss before it
    tells. A signal that vanished from the start ends at the biases, which may leave most units dead, too: so
    without a spike only a whole layer counts.
    """
    spike = c.loss_spike
    stats = max(c.stats, key=lambda stats: stats.dead or 0.0)  # the first of the worst
    dead = stats.dead or 0.0
    if dead < 1.0 and not (spike and c.by_chance and dead >= MANY_DEAD):
        return
    reason = (
        f"{100 * dead:.0f} % of the units are zero for every image, so neither signal nor gradient passes"
        f" them{f', after {spike}' if spike else ''}; the loss is {c.loss:.4f}."
    )
    advice = f"{SLOWER}, and begin again: dead units do not come back."
    if not c.step and not spike:
        advice = f"Look at its biases and at what comes in. If the network was trained: {ADVICE}."
    yield Verdict("dead", stats.path, reason, advice)


def _exploding(c: Context) -> Iterator[Verdict]:
    """A layer that multiplies the signal by q each time leaves q^16 of it after sixteen, here for q > 1."""
    out, spike = rms(c.logits - c.logits.mean()), c.loss_spike
    # What has learned the labels, and what has learned others, has large logits, too, with a small loss or
    # at weights of He's size.
    if out < LARGE_LOGITS or c.loss < c.chance_loss or not c.by_chance:
        return
    stats, growth = _largest_change([c.input, *c.layers], "std")
    name, advice = ("learning rate too high", SLOWER) if spike else ("exploding", HE)
    reason = (
        f"Activations grow from {c.input.std:.2g} at the images to {out:.2g} at the output, by a factor of "
        f"{growth:.2g} in this layer{f', since {spike}' if spike else ''}; the loss is {c.loss:.3g}, knowing "
        f"nothing is {c.chance_loss:.2f}."
    )
    yield Verdict(name, stats.path, reason, f"{advice}.")


def _vanishing(c: Context) -> Iterator[Verdict]:
    """A layer that multiplies the signal by q < 1 each time; and then every gradient vanishes, too.

    A ReLU network without biases is homogeneous in the weights w of each layer: twice w is twice the logits
    z. Euler's theorem says then <w, dL/dw> = <z, dL/dz>, for every layer the same. Where the last layer alone
    makes logits small its own gradient stays, and it learns. Activations that saturate lose the gradient
    alone.
    """
    out = rms(c.logits - c.logits.mean(axis=0))
    weakest = min(c.learning, key=lambda stats: stats.gradient or 0.0, default=None)
    if weakest is None or _learns_soon(c):
        return
    smallest = weakest.gradient or 0.0
    if out < SMALL_LOGITS:
        stats, fall = _largest_change([c.input, *c.layers], "signal")
        name, advice = ("dead", f"{SLOWER}, and begin again.") if c.loss_spike else ("vanishing", f"{HE}.")
        reason = (
            f"What differs from image to image falls from {c.input.signal:.2g} at the images to {out:.1e} at "
            f"the output, by a factor of {fall:.2g} in this layer, so that the loss is {c.loss:.4f}, close "
            f"to ln {c.classes}, and the smallest gradient {smallest:.0e} of its weights: no "
            f"learning rate helps.{_before(c)}"
        )
        yield Verdict(name, stats.path, reason, advice)
    elif 0.0 < smallest < SMALL_GRADIENT * c.error:
        largest = max(stats.gradient or 0.0 for stats in c.layers)
        reason = (
            f"The gradient is {smallest:.0e} of the weights here and {largest:.0e} where it is "
            "largest: it is lost on the way back."
        )
        yield Verdict("vanishing", weakest.path, reason, f"Use ReLU, and {HE[0].lower()}{HE[1:]}.")


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


def _frozen(c: Context) -> Iterator[Verdict]:
    """A gradient of exactly zero, where signal and error are not, is a mistake in the code."""
    if c.error < NO_ERROR:
        return
    learned = None if c.optimizer is None else {id(p) for p in c.optimizer.parameters.values()}
    for stats in c.stats:
        weights = [p for p in stats.weights if p.trainable]
        if not all(p.has_grad for p in weights):
            why = "Its backward sets no gradient"
        elif weights and stats.gradient == 0.0:
            why = "Its gradient is exactly zero, although signal and error are not"
        elif learned is not None and not all(id(p) in learned for p in weights):
            why = "The optimizer does not have its weights"
        else:
            continue
        advice = "Look at the backward of this layer and of the next, and give the optimizer all parameters."
        yield Verdict("frozen", stats.path, f"{why}, so {type(stats.layer).__name__} never changes.", advice)


def _rate_too_high(c: Context) -> Iterator[Verdict]:
    reason, where, update = "", "", c.median_update
    if update is not None and update > (LARGE_UPDATE_NORMALISED if c.norms else LARGE_UPDATE):
        largest = max(c.learning, key=lambda stats: stats.update or 0.0)
        where = largest.path
        reason = (
            f"A step changes weights by {update:.2g} of themselves in the median layer, and by "
            f"{largest.update:.2g} in this one"
        )
    elif not c.norms and c.lr:
        after = c.loss_after_step(c.lr)
        if not after < LOSS_GROWTH * max(c.loss, c.chance_loss):
            reason = f"One step takes the loss of the very same images from {c.loss:.3g} to {after:.3g}"
    if not reason and c.loss_spike and c.by_chance:
        reason = f"{c.loss_spike.capitalize()}, and is {c.loss:.3g} now"
    if reason:
        advice = f"{SLOWER}: steps of a hundredth or less are good."
        yield Verdict("learning rate too high", where, f"{reason}.", advice)


def _rate_too_low(c: Context) -> Iterator[Verdict]:
    if not c.lr or c.median_update is None or _learns_soon(c):
        return
    update = c.median_update * (c.highest_lr or c.lr) / c.lr
    if update < SMALL_UPDATE * c.error:
        reason = (
            f"A step changes weights by {update:.1e} of themselves in the median layer: others take more "
            f"than {1 / SMALL_UPDATE:,.0f} steps."
        )
        advice = "Raise the learning rate: steps of a thousandth are good."
        yield Verdict("learning rate too low", "", reason, advice)


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


def _running_statistics(c: Context) -> Iterator[Verdict]:
    if not c.norms or c.loss > KNOWN * c.chance_loss:
        return
    for _, layer in c.net.walk():
        layer.training = False
    loss = c.loss_now()
    if not loss < UNKNOWN * c.chance_loss:
        reason = (
            f"With the batch's own statistics the loss is {c.loss:.3g}, with the running ones {loss:.3g}: "
            "what batch normalisation tracked is not what the layers see."
        )
        advice = "Track them in training mode, with a momentum near 0.1, and save them with the weights."
        yield Verdict("running statistics off", c.norms[0].path, reason, advice)


def _labels(c: Context) -> Iterator[Verdict]:
    recent = fmean(c.losses[-STUCK_MEAN:]) if len(c.losses) >= STUCK_STEPS else 0.0
    chance, confidence = 1.0 / c.classes, float(F.softmax(c.logits).max(axis=1).mean())
    last = c.epochs[-1] if c.epochs else {"train_accuracy": chance, "val_accuracy": chance}
    train, val = last["train_accuracy"], last["val_accuracy"]
    if recent > STUCK * c.chance_loss:
        reason = (
            f"After {c.step} steps the training loss is {recent:.4f}, ln {c.classes} is {c.chance_loss:.4f}, "
            "although signal, gradients and steps are sound: nothing in the images tells the labels."
        )
    elif val < GUESSED * chance and train > MEMORISED * chance:
        reason = (
            f"Training images are memorised, {100 * train:.0f} % of them, and of validation images "
            f"{100 * val:.0f} % are correct, which is guessing."
        )
    elif c.step and c.by_chance and confidence > CONFIDENT:
        reason = (
            f"Softmax is {100 * confidence:.0f} % sure of its answers and right by chance only: the "
            "network has learned other labels than these."
        )
    elif not (reason := _no_trace(c)):
        return
    advice = "Look at images with their labels: they must be shuffled together, or not at all."
    yield Verdict("labels shuffled", "", reason, advice)


def _no_trace(c: Context) -> str:
    """Return a sentence where images with one label are no more alike than images with two.

    Images of one class are more alike, in their pixels or in what even random layers make of them. The sum of
    cosines over pairs with one label is compared with those after shuffling the labels.
    """
    if c.pairs < ENOUGH_PAIRS or not _looks_like_images(c.x):
        return ""
    found = [stats.similarity for stats in c.stats if stats.similarity is not None]
    rng, best = np.random.default_rng(0), -float("inf")
    shuffled = [rng.permutation(c.labels) for _ in range(100)]
    for similarity in (cosine_similarity(c.x), *found):
        own, *others = (
            float(similarity[labels[:, None] == labels].sum()) for labels in (c.labels, *shuffled)
        )
        best = max(best, (own - float(np.mean(others))) / float(np.std(others)))
    if best > NO_TRACE:
        return ""
    return (
        f"Images with the same label are no more alike than others, in no layer: {best:.1f} standard "
        "deviations above chance at most."
    )


def _looks_like_images(x: Array) -> bool:
    """Tell images, in which neighbouring pixels are alike, from noise, which no label can be read from."""
    if x.ndim != 4 or x.shape[2] < 2:
        return False
    x = x - x.mean(axis=(0, 1, 2))
    return float((x[:, :, 1:] * x[:, :, :-1]).mean()) > IMAGE_LIKE * float((x * x).mean())


def _overfitting(c: Context) -> Iterator[Verdict]:
    """Twice in a row, as one epoch may be an accident, and with a training loss that goes on falling."""
    if len(c.epochs) < 3:
        return
    best = min(c.epochs, key=lambda row: row["val_loss"])
    *_, before, last = c.epochs
    rising = best is not before and all(row["val_loss"] > RISEN * best["val_loss"] for row in (before, last))
    if rising and last["train_loss"] < best["train_loss"]:
        reason = (
            f"Validation loss rose from {best['val_loss']:.3g} to {last['val_loss']:.3g}, while training "
            f"loss fell from {best['train_loss']:.3g} to {last['train_loss']:.3g}."
        )
        advice = "Stop earlier, or take more images, augmentation, dropout or weight decay."
        yield Verdict("overfitting", "", reason, advice)


RULE_TIERS: tuple[tuple[Callable[[Context], Iterator[Verdict]], ...], ...] = (
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


def _largest_change(layers: list[LayerStats], measure: str) -> tuple[LayerStats, float]:
    """Return the layer that changes the size most, in the direction of the whole change, and its factor."""
    sizes = [max(getattr(stats, measure), 1e-300) for stats in layers]
    logs = [log(size) for size in sizes]
    direction = 1.0 if logs[-1] > logs[0] else -1.0
    at = max(range(1, len(logs)), key=lambda i: direction * (logs[i] - logs[i - 1]))
    return layers[at], sizes[at] / sizes[at - 1]


def _learns_soon(c: Context) -> bool:
    """Whether there is nothing to learn, or the last layer alone makes logits small.

    That layer learns at once, and then lets the gradient back.
    """
    if c.error < ENOUGH_ERROR:
        return True
    if len(c.layers) < 2:
        return False
    *_, before, last = c.layers
    w = max(last.weights, key=lambda p: p.size)
    times_he = rms(w.data) * sqrt(prod(w.shape[:-1]) / 2.0)
    return before.signal > ARRIVING_SIGNAL * c.input.signal and 0.0 < times_he < SMALL_LAST_LAYER


def _before(c: Context) -> str:
    return f" Before, {c.loss_spike}." if c.loss_spike else ""
