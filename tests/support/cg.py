"""Random steps of conjugate gradients against the definition, and solves against LU."""

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from metasparse_ext.implicit import cg
from metasparse_ext.ops.cg import cg_step
from metasparse_ext.reference import cg as reference
from support.comparison import changed, first_difference
from support.machine import INSTRUCTION_SETS, THREADS, conditions
from support.operands import LAYOUTS, place

DTYPES = ("float64", "float32")
# Of rounding alone, over the largest term.
STEP_BOUND = {"float32": 1e-6, "float64": 1e-14}
# Of solves whose matrices have condition numbers below 10.
SOLVE_BOUND = {"float32": 1e-4, "float64": 1e-12}
# What is the matter with a task before the step; its status otherwise.
SPECIAL = ("nan", "infinite", "met")


class Step(NamedTuple):
    """One step of tasks in a state (a reference status) or a trouble of SPECIAL. ``layouts`` are of
    q and of the preconditioner, None for none."""

    states: tuple[int | str, ...] = (reference.RUNNING,)
    size: int = 1
    layouts: tuple[str, str | None] = ("contiguous", None)
    dtype: str = "float64"
    threads: int = 1
    isa: str = INSTRUCTION_SETS[-1]
    data: int = 0

    def check(self) -> str | None:
        """What is wrong with the new state, or None."""
        vectors, fixed, scalars = self._state()
        mine = [t.clone() for t in (*vectors, *scalars)]
        exact = [t.double() if t.is_floating_point() else t for t in mine]
        exact = [t.clone() for t in exact]
        before = {name: t.clone() for name, t in fixed.items() if t is not None}
        with conditions(self.threads):
            cg_step(*mine[:3], *fixed.values(), *mine[3:])
        doubles = (None if t is None else t.double() for t in fixed.values())
        reference.cg_step(*exact[:3], *doubles, *exact[3:])
        names = ("x", "r", "p", "rz", "rr", "limit", "status", "iterations")
        for name, got, right in zip(names, mine, exact, strict=True):
            for row, state in enumerate(self.states):
                moved = exact[-1][row] > 0
                bound = self._scale(vectors, fixed, scalars, row)[name] if moved else 0.0
                difference = _difference(got[row], right[row])
                if not difference <= bound:
                    return f"{name} of task {row} ({state}): off by {difference:.2e} > {bound:.2e}"
        return changed(before, fixed)

    def _state(self):
        """(x, r, p), (q, preconditioner), (rz, rr, limit, status, iterations)."""
        generator = torch.Generator().manual_seed(self.data)
        dtype, tasks = getattr(torch, self.dtype), len(self.states)

        def normal(shape) -> Tensor:
            return torch.randn(tuple(shape), generator=generator, dtype=dtype)

        vectors = [normal((tasks, self.size)) for _ in range(3)]
        q, preconditioner = (
            None if layout is None else place((tasks, self.size), layout, fill)
            for layout, fill in zip(
                self.layouts, (normal, lambda shape: normal(shape).abs()), strict=True
            )
        )
        rz, rr = (0.1 + torch.rand(tasks, generator=generator).double() for _ in range(2))
        limit = torch.zeros_like(rr)
        status = torch.tensor([s if isinstance(s, int) else 1 for s in self.states])
        for row, state in enumerate(self.states):
            if state == "met":
                limit[row] = torch.inf
            elif isinstance(state, str):
                vectors[row % 3][row, -1] = torch.nan if state == "nan" else torch.inf
        fixed = {"q": q, "preconditioner": preconditioner}
        return vectors, fixed, [rz, rr, limit, status, torch.zeros_like(status)]

    def _scale(self, vectors, fixed, scalars, row: int) -> dict[str, float]:
        """How far rounding may move each part of the state of one task that takes the step."""
        x, r, p = (v[row].double() for v in vectors)
        q, m = (None if t is None else t[row].double() for t in fixed.values())
        rz, eps = scalars[0][row], STEP_BOUND[self.dtype]
        # alpha rounds once p'q has; what cancels in p'q counts.
        alpha = (rz / (p @ q)).abs() * (1 + (p.abs() @ q.abs()) / (p @ q).abs())
        residual = r.abs() + alpha * q.abs()
        z = residual if m is None else residual * m.abs()
        new_rz = residual @ z
        direction = (z + new_rz / rz * p.abs()).max()
        sizes = {
            "x": (x.abs() + alpha * p.abs()).max(),
            "r": residual.max(),
            "p": direction,
            "rz": new_rz,
            "rr": residual @ residual,
        }
        sizes = {name: eps * size.nan_to_num(torch.inf).item() for name, size in sizes.items()}
        return {**sizes, "limit": 0.0, "status": 0.0, "iterations": 0.0}


def _difference(got: Tensor, right: Tensor) -> float:
    """The largest, 0 where both are the same infinity or NaN."""
    got, right = got.double(), right.double()
    same = (got == right) | (got.isnan() & right.isnan())
    return torch.where(same, 0.0, (got - right).abs()).nan_to_num(torch.inf).max().item()


class Solve(NamedTuple):
    """One solve. ``layouts`` are of b, of x0 and of the preconditioner, None for none."""

    tasks: int = 1
    size: int = 1
    layouts: tuple[str, str | None, str | None] = ("contiguous", None, None)
    zero_row: bool = False
    tolerance: bool = False
    dtype: str = "float64"
    threads: int = 1
    isa: str = INSTRUCTION_SETS[-1]
    data: int = 0

    def check(self) -> str | None:
        """What is wrong with the solution and its derivatives in A and b, or None."""
        matrix, given = self._problem()
        before = {name: t.clone() for name, t in given.items() if t is not None}
        leaves = [matrix.requires_grad_(), given["b"].detach().requires_grad_()]
        with conditions(self.threads):
            result = cg(
                lambda v: (leaves[0] @ v[..., None])[..., 0],
                leaves[1],
                iterations=10 * self.size + 20,
                tolerance=torch.finfo(matrix.dtype).eps * 4 if self.tolerance else None,
                x0=given["x0"],
                preconditioner=given["preconditioner"],
            )
            grad = torch.ones_like(result.solution)
            results = [result.solution, *torch.autograd.grad(result.solution, leaves, grad)]
        exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
        solution = torch.linalg.solve(*exact)
        expected = [solution, *torch.autograd.grad(solution.sum(), exact)]
        # A symmetric operator has one derivative along A and its transpose.
        results[1], expected[1] = (t[1] + t[1].mT for t in (results, expected))
        scales = [t.abs().amax() + 1 for t in expected]
        bound, dtype = SOLVE_BOUND[self.dtype], matrix.dtype
        return changed(before, given) or first_difference(results, expected, scales, bound, dtype)

    def _problem(self) -> tuple[Tensor, dict[str, Tensor | None]]:
        generator = torch.Generator().manual_seed(self.data)
        dtype, shape = getattr(torch, self.dtype), (self.tasks, self.size)

        def normal(shape) -> Tensor:
            return torch.randn(tuple(shape), generator=generator, dtype=dtype)

        root = normal((*shape, self.size))
        matrix = root @ root.mT / self.size + torch.eye(self.size, dtype=dtype)
        fills = {"b": normal, "x0": normal, "preconditioner": lambda s: normal(s).abs() + 0.5}
        given = {
            name: None if layout is None else place(shape, layout, fill)
            for (name, fill), layout in zip(fills.items(), self.layouts, strict=True)
        }
        if self.zero_row:
            given["b"] = given["b"].clone()
            given["b"][0] = 0
        return matrix, given


def steps() -> SearchStrategy[Step]:
    """Steps of a few tasks, one vector in eight longer than a thread's chunk."""
    size = st.one_of(*[st.integers(1, 300)] * 7, st.integers(16000, 40000))
    states = st.sampled_from((reference.RUNNING, 0, 2, 3, *SPECIAL))
    return st.builds(
        Step,
        states=st.lists(states, min_size=1, max_size=5).map(tuple),
        size=size,
        layouts=st.tuples(_layouts(), st.none() | _layouts()),
        **_anywhere(),
    )


def solves() -> SearchStrategy[Solve]:
    return st.builds(
        Solve,
        tasks=st.integers(1, 4),
        size=st.integers(1, 30),
        layouts=st.tuples(_layouts(), st.none() | _layouts(), st.none() | _layouts()),
        zero_row=st.booleans(),
        tolerance=st.booleans(),
        **_anywhere(),
    )


def _layouts() -> SearchStrategy[str]:
    return st.sampled_from(tuple(LAYOUTS))


def _anywhere() -> dict[str, SearchStrategy]:
    return {
        "dtype": st.sampled_from(DTYPES),
        "threads": st.sampled_from(THREADS),
        "isa": st.sampled_from(INSTRUCTION_SETS),
        "data": st.integers(0, 2**20),
    }
