"""The learning rate: linear warm-up, then a cosine down to a floor.

Of n steps, warm-up takes its share rounded up, but never the last step: any share above 0 has a
step of warm-up, and every run of two steps or more reaches the peak and ends at the floor. The
peak is at the last step of warm-up, and again at the first after it, where the cosine begins,
unless that is the last of all. A single step is at the peak.
"""

from fractions import Fraction
from math import ceil, cos, pi


def warm_steps(share: float, steps: int) -> int:
    """Return how many of `steps` steps warm up; `share` is the decimal fraction that it is
    written as, so that 0.07 of 100 steps are 7.
    """
    return min(ceil(Fraction(str(share)) * steps), steps - 1)


def rate(step: int, steps: int, peak: float, warmup: float, floor: float) -> float:
    """Return the learning rate of `step`, counting from 0.

    `warmup` is a fraction of all steps, `floor` one of the peak.
    """
    warm = warm_steps(warmup, steps)
    if step < warm:
        return peak * (step + 1) / warm
    after = steps - 1 - warm
    progress = (step - warm) / after if after else float(warm > 0)
    return peak * (floor + (1 - floor) * (1 + cos(pi * progress)) / 2)


def late(step: int, steps: int, peak: float, warmup: float, floor: float) -> float:
    """Return what `rate` does, one step later, as composer's schedulers count.

    The first step has rate 0 and changes nothing; the floor is that of the step after the last.
    """
    warm = warm_steps(warmup, steps)
    if step < warm:
        return peak * step / warm
    progress = (step - warm) / (steps - warm)
    return peak * (floor + (1 - floor) * (1 + cos(pi * progress)) / 2)
