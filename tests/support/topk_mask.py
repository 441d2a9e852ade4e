"""Random calls of topk_mask against its definition, a sort in Python."""

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

import metasparse_ext as ms
from support.comparison import changed
from support.machine import INSTRUCTION_SETS, THREADS, conditions
from support.operands import LAYOUTS, place

# "ties": few distinct values, both zeros among them; "wild": powers of ten, and infinities.
VALUES = ("normal", "ties", "wild", "same")
SCOPES = ("layer", "task", "network")


class TopK(NamedTuple):
    """One call: scores of two layers, (T, n) each, one score a weight."""

    tasks: int = 1
    sizes: tuple[int, int] = (1, 1)
    scope: str = "layer"
    density: float = 0.5
    values: str = "normal"
    nan: bool = False
    layout: str = "contiguous"
    dtype: str = "float64"
    threads: int = 1
    isa: str = INSTRUCTION_SETS[-1]
    data: int = 0

    def check(self) -> str | None:
        """What is wrong with the result, or None."""
        layers = self._scores()
        before = {str(i): layer.clone() for i, layer in enumerate(layers)}
        try:
            with conditions(self.threads):
                masks = ms.topk_mask(layers, self.density, scope=self.scope, tasks=True)
        except ValueError as error:
            return None if self.nan and "NaN" in str(error) else f"refused: {error}"
        if self.nan:
            return "scores that hold NaN are ranked"
        for index, (mask, right) in enumerate(zip(masks, self._definition(layers), strict=True)):
            if mask.dtype != layers[index].dtype or mask.shape != layers[index].shape:
                return f"mask {index}: {mask.dtype} of shape {tuple(mask.shape)}"
            if not torch.equal(mask.double(), right):
                wrong = (mask.double() != right).nonzero()[:5].tolist()
                return f"mask {index} is wrong at {wrong}, {int(mask.sum())} of {mask.numel()} kept"
        return changed(before, {str(i): layer for i, layer in enumerate(layers)})

    def _scores(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.data)
        dtype = getattr(torch, self.dtype)

        def fill(shape) -> Tensor:
            values = torch.randn(tuple(shape), generator=generator, dtype=dtype)
            if self.values == "wild":
                values = values * 10 ** (20 * torch.rand(values.shape, generator=generator) - 10)
                return values.masked_fill(values.abs() > 1e9, torch.inf).to(dtype)
            scale = {"normal": 1.0, "ties": 1.0, "same": 0.0}[self.values]
            return scale * (values.round() if self.values == "ties" else values)

        layers = [place((self.tasks, 1, n), self.layout, fill) for n in self.sizes]
        if self.nan:
            layers[-1] = layers[-1].clone()
            layers[-1][-1, -1, -1] = torch.nan
        return layers

    def _definition(self, layers: list[Tensor]) -> list[Tensor]:
        """The masks, from the ranks of all units that share a budget."""
        rows = [layer.double().flatten(1) for layer in layers]
        if self.scope == "layer":
            return [_best(r, self.density).view_as(x) for r, x in zip(rows, layers, strict=True)]
        if self.scope == "task":
            parts = _best(torch.cat(rows, 1), self.density).split(self.sizes, 1)
        else:
            flat = torch.cat([r.flatten() for r in rows])[None]
            parts = _best(flat, self.density)[0].split([r.numel() for r in rows])
        return [part.reshape(x.shape) for part, x in zip(parts, layers, strict=True)]


def _best(rows: Tensor, density: float) -> Tensor:
    """Ones at the largest of each row; equal ones rank by index, lowest first."""
    masks = torch.zeros_like(rows)
    for mask, row in zip(masks, rows.tolist(), strict=True):
        ranked = sorted(range(len(row)), key=lambda i: -row[i])
        mask[ranked[: round(density * len(row))]] = 1
    return masks


@st.composite
def draws(draw) -> TopK:
    """Calls with rows of up to some thousand scores."""
    sizes = st.one_of(st.integers(1, 40), st.integers(1, 3000))
    return TopK(
        tasks=draw(st.integers(1, 4)),
        sizes=draw(st.tuples(sizes, sizes)),
        scope=draw(st.sampled_from(SCOPES)),
        density=draw(st.one_of(st.sampled_from((0.0, 0.5, 1.0)), st.floats(0, 1))),
        values=draw(st.sampled_from(VALUES)),
        nan=draw(st.sampled_from((False, False, False, True))),
        layout=draw(st.sampled_from(tuple(LAYOUTS))),
        dtype=draw(st.sampled_from(("float64", "float32"))),
        threads=draw(st.sampled_from(THREADS)),
        isa=draw(st.sampled_from(INSTRUCTION_SETS)),
        data=draw(st.integers(0, 2**20)),
    )
