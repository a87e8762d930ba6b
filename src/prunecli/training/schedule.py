"""The learning rate: linear warmup, then a cosine down to a floor.

Of n steps, warmup takes its fraction rounded up, but never the last step: any fraction above 0 has
a step of warmup, and every run of two steps or more reaches the peak and ends at the floor. The
peak is at the last step of warmup, and again at the first after it, where the cosine begins, unless
that is the last of all. A single step is at the peak.
"""

from collections.abc import Callable
from fractions import Fraction
from math import ceil, cos, pi

# the learning rate of (step, steps, peak, warmup, floor)
Schedule = Callable[[int, int, float, float, float], float]


def warmup_steps(fraction: float, steps: int) -> int:
    """Return how many of `steps` steps warm up; `fraction` is the decimal number that it is
    written as, so that 0.07 of 100 steps are 7.
    """
    return min(ceil(Fraction(str(fraction)) * steps), steps - 1)


def cosine_lr(step: int, steps: int, peak: float, warmup: float, floor: float) -> float:
    """Return the learning rate of `step`, counting from 0.

    `warmup` is a fraction of all steps, `floor` one of the peak.
    """
    warm = warmup_steps(warmup, steps)
    if step < warm:
        return peak * (step + 1) / warm
    after = steps - 1 - warm
    progress = (step - warm) / after if after else float(warm > 0)
    return peak * (floor + (1 - floor) * (1 + cos(pi * progress)) / 2)


def delayed_cosine_lr(step: int, steps: int, peak: float, warmup: float, floor: float) -> float:
    """Return what `cosine_lr` does, one step later, as composer's schedulers count.

    The first step has rate 0 and changes nothing; the floor is that of the step after the last.
    """
    warm = warmup_steps(warmup, steps)
    if step < warm:
        return peak * step / warm
    progress = (step - warm) / (steps - warm)
    return peak * (floor + (1 - floor) * (1 + cos(pi * progress)) / 2)
