"""Training in several stages: what a learner may implement, and what it means to have none."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from metasparse_ext.algorithms.base import MetaLearner
from metasparse_ext.training.config import RunConfig

BUDGET_TOLERANCE = 0.02


@runtime_checkable
class Stages(Protocol):
    """The hooks of a learner that is trained several times, such as a search for sparse networks.

    When a stage has ended and another follows, the loop calls :meth:`next_stage`, takes a fresh
    optimizer and starts the schedule over. Only checkpoints of the last stage can become the best.
    Positions and lengths are in the loop's unit, iterations or seconds.

    Attributes:
        stages: How many there are.
        stage: The present one, from 0.
        stage_start: The position at which its schedule began.
        search_length: Length of each stage but the last, as a fraction of the last one's.
    """

    stages: int
    stage: int
    stage_start: float
    search_length: float

    def plan(self, iterations: int) -> None:
        """Called before training with the iterations of the last stage, where they are known.

        Raises:
            ValueError: If the learner's options do not fit in.
        """

    def stepped(self, iteration: int, position: float) -> None:
        """Called after every step of the outer optimizer; ``iteration`` counts them all."""

    def stage_ended(self, position: float, length: float) -> bool:
        """Whether the present stage is over, if it is so long."""
        ...

    def next_stage(self, position: float) -> None:
        """Begins the next stage.

        Raises:
            ValueError: If the stage that ended cannot be followed by another.
        """

    def status(self) -> dict[str, float]:
        """What the metrics should say of the stages, beside loss and accuracy."""
        ...


class SingleStage:
    """One stage, from the start of the training to its end."""

    stages = 1
    stage = 0
    stage_start = 0.0
    search_length = 1.0

    def plan(self, iterations: int) -> None:
        pass

    def stepped(self, iteration: int, position: float) -> None:
        pass

    def stage_ended(self, position: float, length: float) -> bool:
        return position >= length

    def next_stage(self, position: float) -> None:
        raise RuntimeError("a training of one stage has no next one")

    def status(self) -> dict[str, float]:
        return {}


def stages_of(learner: Any) -> Stages:
    """The learner itself if it implements :class:`Stages`, else one stage."""
    return learner if isinstance(learner, Stages) else SingleStage()


def is_last(stages: Stages) -> bool:
    """Whether no other stage follows the present one."""
    return stages.stage + 1 >= stages.stages


def length(stages: Stages, config: RunConfig) -> float:
    """How long the present stage is; the last one takes all seconds that are left."""
    last = is_last(stages)
    part = 1.0 if last else stages.search_length
    if config.max_seconds is None:
        return config.iterations * part
    if not last:
        return config.max_seconds / stages.stages * part
    return config.max_seconds - stages.stage_start


def eligible(learner: MetaLearner, stages: Stages, active: float) -> bool:
    """Whether a checkpoint may become the best: not in a search, nor before its budget holds."""
    if not is_last(stages):
        return False
    budget = getattr(learner, "budget", None)
    return budget is None or abs(active - budget) <= BUDGET_TOLERANCE
