"""What a run's losses, one per step, are reported as."""

POINTS = 1000


def final(losses: list[float]) -> float:
    """Return the mean over the last twentieth of the steps."""
    tail = losses[-max(1, len(losses) // 20) :]
    return sum(tail) / len(tail)


def curve(losses: list[float]) -> dict[str, object]:
    """Return at most a thousand means of as many steps in a row, and how many those are."""
    every = -(-len(losses) // POINTS)
    parts = [losses[i : i + every] for i in range(0, len(losses), every)]
    return {"every": every, "loss": [sum(part) / len(part) for part in parts]}
