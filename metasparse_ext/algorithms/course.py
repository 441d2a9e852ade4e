"""How a learner is trained: once, unless it says otherwise."""

from __future__ import annotations


class Course:
    """What the training loop asks a learner about its trainings.

    Most learners are trained once and need none of this. One that searches for a sparse network
    trains several times: when a training has ended and another follows, the loop calls
    :meth:`begin_again` and takes a fresh optimizer, and the schedule starts over. Only checkpoints
    of the last training may be chosen. Positions and lengths are in the loop's unit, iterations or
    seconds.

    Attributes:
        trainings: How many there are.
        search_length: Length of each but the last of them, as a fraction of the last one's.
        finished: How many are over.
        begun: The position at which its schedule began.
    """

    trainings = 1
    search_length = 1.0
    finished = 0
    begun = 0.0

    @property
    def searching(self) -> bool:
        """Whether another training follows the present one."""
        return self.finished + 1 < self.trainings

    def plan(self, iterations: int) -> None:
        """Told, before it begins, how many iterations the last training has, where that is known.

        Raises:
            ValueError: If the learner's options do not fit in.
        """

    def stepped(self, iteration: int, position: float) -> None:
        """Told after every step of the outer optimizer; ``iteration`` counts them all."""

    def ended(self, position: float, length: float) -> bool:
        """Whether the present training is over, if one is so long."""
        return position - self.begun >= length

    def begin_again(self, position: float) -> None:
        """Begins the next training."""
        raise NotImplementedError

    def status(self) -> dict[str, float]:
        """What the metrics should say of the course, beside loss and accuracy."""
        return {}
