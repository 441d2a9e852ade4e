"""Learning rates of the inner loop that are themselves meta-learned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metasparse_ext.implicit import Layout

KINDS = ("fixed", "layer", "parameter")


class LearnedRates(nn.Module):
    """One rate for each parameter, or one for each parameter tensor and step.

    Args:
        kind: "parameter" (Meta-SGD: Li et al., 2017), or "layer" (LSLR of MAML++: Antoniou et al.,
            ICLR 2019), whose steps after the last share its rates.
        layout: Of the P adapted parameters.
        initial: () the rate that all start from; or (N,) for N sets of rates, each from its own.
        steps: Inner steps of training.
    """

    def __init__(self, kind: str, layout: Layout, *, initial: Tensor, steps: int) -> None:
        super().__init__()
        shape = (layout.numel,) if kind == "parameter" else (max(steps, 1), len(layout.names))
        self.kind, self.sizes = kind, layout.sizes
        values = initial.view(*initial.shape, *[1] * len(shape)).expand(*initial.shape, *shape)
        self.values = nn.Parameter(values.clone())

    def forward(self, step: int) -> Tensor:
        """(P,) or (N, P): the rates of an inner step."""
        if self.kind == "parameter":
            return self.values
        return spread(self.values[..., min(step, self.values.shape[-2] - 1), :], self.sizes)

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}"


def spread(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """(..., L) to (..., P): one number a parameter tensor, repeated for each of its entries."""
    parts = values.unsqueeze(-1).unbind(-2)
    return torch.cat(
        [part.expand(*part.shape[:-1], n) for part, n in zip(parts, sizes, strict=True)], -1
    )
