"""The weights of MAML++'s multi-step loss."""

# Each step but the last keeps at least this fraction of its first weight.
_FLOOR = 0.03


def step_weights(steps: int, progress: float) -> list[float]:
    """Weights of the query losses after each of n inner steps; they add up to 1.

    All are 1 / n at first. Until ``progress`` is 1 those of all steps but the last fall linearly
    towards 0, not below 0.03 / n, and the last one takes what they lose.

    Source: Antoniou, Edwards, Storkey, "How to Train Your MAML", ICLR 2019, and its public code,
    which counts progress in epochs.
    """
    early = max(1 - progress, _FLOOR) / steps
    return [early] * (steps - 1) + [1 - (steps - 1) * early]
