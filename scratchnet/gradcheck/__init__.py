"""Gradient checks: what ``backward`` returns, compared with what small steps of ``forward`` measure.

The derivative of f at t is nearly (f(t + h) - f(t - h)) / 2h, and computing that needs ``forward`` alone: so
it can tell whether ``backward`` is right. A layer has many outputs, so a loss is made of them, the sum of
dy * y with *random* dy. (With dy = 1 many wrong gradients look right: the outputs of a batch normalisation
add up to the same whatever comes in.) There are two ways to look, and both work in float64:

``"elements"``
    one step for each element of the input and of each parameter. Finds everything, and says which element.
``"directions"``
    random directions v: the slope of L along v has to be the inner product <gradient, v>. Three steps check
    an array of any size, since a wrong element would have to hide from every v.

ReLU and max pooling have kinks, where the slope jumps and the difference of a step across it means nothing.
When the two values disagree, the step is made smaller. If they agree then, the step had crossed a kink; if
their distance keeps shrinking with the step, only the curvature jumps, as that of max(x, 0)^2 does at 0, and
the gradient is right. If neither, look at the slopes to the right and to the left: where the function is
smooth they come together as the step shrinks, and the gradient is wrong. Where they stay apart there is a
kink at the very point, and each value between the two slopes is a subgradient. But a wrong gradient could lie
there by chance. So everything is then moved a little, off the kink, to one side and to the other, and there
they must agree. And some directions lead along the kink, where there is no jump: equal values that move
together stay equal, and zeros that are not moved stay zero. Along those, too, the values must agree: a max
pooling that gives its gradient to each of several equal values, not to one, gives too much.

Every check works on a copy of the layer in float64. The layer itself does not change in any bit.
"""

from scratchnet.gradcheck.check import check_layer, check_network
from scratchnet.gradcheck.report import ArrayCheck, GradientError, Measurement, Report  # noqa: F401

__all__ = ["GradientError", "Report", "check_layer", "check_network"]
