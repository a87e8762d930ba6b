"""The learning rate: linear warm-up, then a cosine down to a floor."""

from math import cos, pi


def rate(step: int, steps: int, peak: float, warmup: float, floor: float) -> float:
    """Return the learning rate of `step`, counting from 0; the last step is at the floor.

    `warmup` is a fraction of all steps, `floor` one of the peak.
    """
    warm = round(warmup * steps)
    if step < warm:
        return peak * (step + 1) / warm
    progress = (step - warm) / max(1, steps - 1 - warm)
    return peak * (floor + (1 - floor) * (1 + cos(pi * progress)) / 2)


def late(step: int, steps: int, peak: float, warmup: float, floor: float) -> float:
    """Return what `rate` does, one step later, as composer's schedulers count.

    The first step has rate 0 and changes nothing; the floor is that of the step after the last.
    """
    warm = round(warmup * steps)
    if step < warm:
        return peak * step / warm
    progress = (step - warm) / (steps - warm)
    return peak * (floor + (1 - floor) * (1 + cos(pi * progress)) / 2)
