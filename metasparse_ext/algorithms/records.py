"""What a learner says: of a meta-step what it measured, and of itself where it is from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from metasparse_ext._records import check_fields


@dataclass(frozen=True)
class Metrics:
    """What one meta-step measured: a value per task, without a graph, on the learner's device.

    Attributes:
        loss: (T,) query cross-entropy after adaptation.
        accuracy: (T,) query accuracy after adaptation, in [0, 1].
        active: (T,) fraction of the kernels of all masked convolutions that the adapted task uses.
        support_loss: (T,) support cross-entropy before the last inner step.
    """

    loss: Tensor
    accuracy: Tensor
    active: Tensor
    support_loss: Tensor


@dataclass(frozen=True)
class Source:
    """The origin of a learner.

    Attributes:
        paper: What it is published in.
        exact: What follows the paper or its public code to the letter.
        reconstructed: What the public sources leave open and is decided here, or where this
            package departs from them; empty if neither.
    """

    paper: str
    exact: str
    reconstructed: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
