"""Random calls of norm_act_pool and its derivatives against the definition in float64."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import metasparse_ext as ms
from metasparse_ext import reference
from metasparse_ext.ops.norm_act_pool import ACTIVATIONS, ORDERS
from support.comparison import changed, first_difference
from support.machine import INSTRUCTION_SETS, THREADS, conditions
from support.operands import LAYOUTS, place

OPERATIONS = ("gradients", "hessian", "tangent")
ARGUMENTS = ("x", "weight", "bias")
# "ties": few distinct values; "same": one; "offset": a mean of many standard deviations.
VALUES = ("normal", "ties", "same", "offset")
BOUND = {"float32": 1e-5, "float64": 1e-12}

Operands = dict[str, Tensor | None]


class Norm(NamedTuple):
    """One call. ``layouts`` are of x, weight, bias and grad; ``shared`` names the arguments without
    a task axis, ``wanted`` the gradients that are asked for."""

    operation: str = "gradients"
    tasks: int = 1
    samples: int = 1
    channels: int = 1
    size: tuple[int, int] = (2, 2)
    order: str = "norm_act_pool"
    activation: str = "relu"
    pool: bool = False
    eps: float = 1e-5
    affine: tuple[bool, bool] = (False, False)
    values: str = "normal"
    shared: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ("x",)
    layouts: tuple[str, ...] = ("contiguous",) * 4
    dtype: str = "float64"
    threads: int = 1
    isa: str = INSTRUCTION_SETS[-1]
    data: int = 0

    def check(self) -> str | None:
        """What is wrong with the result, or None."""
        given = _operands(self)
        before = {name: t.clone() for name, t in given.items() if t is not None}
        with conditions(self.threads):
            results = _results(self, given, ms.norm_act_pool)
        exact = {name: None if t is None else t.double() for name, t in given.items()}
        expected = _results(self, exact, reference.norm_act_pool)
        steady = _steady(self, exact)
        return changed(before, given) or first_difference(
            [results[0], *(_where(steady, r) for r in results[1:])],
            [expected[0], *(_where(steady, e) for e in expected[1:])],
            _scales(self, exact),
            BOUND[self.dtype],
            getattr(torch, self.dtype),
        )

    @property
    def options(self) -> dict:
        names = ("eps", "activation", "pool", "order")
        return {name: getattr(self, name) for name in names}

    @property
    def output_size(self) -> tuple[int, ...]:
        return tuple(size // 2 if self.pool else size for size in self.size)


def _operands(draw: Norm) -> Operands:
    """Arguments, the gradient of the result, and a direction for each: names that end with 2."""
    generator = torch.Generator().manual_seed(draw.data)
    dtype = getattr(torch, draw.dtype)

    def normal(shape) -> Tensor:
        return torch.randn(tuple(shape), generator=generator, dtype=dtype)

    def images(shape) -> Tensor:
        values = normal(shape)
        return {
            "normal": values,
            "ties": values.round(),
            "same": torch.full_like(values, 0.7),
            "offset": values + 100,
        }[draw.values]

    shapes = {
        "x": (draw.samples, draw.channels, *draw.size),
        "weight": (draw.channels,),
        "bias": (draw.channels,),
        "grad": (draw.samples, draw.channels, *draw.output_size),
    }
    operands: Operands = {}
    for (name, shape), layout in zip(shapes.items(), draw.layouts, strict=True):
        absent = not dict(zip(ARGUMENTS[1:], draw.affine, strict=True)).get(name, True)
        alone = name in draw.shared or (name == "grad" and _without_tasks(draw))
        size = shape if alone else (draw.tasks, *shape)
        fill = images if name == "x" else normal
        operands[name] = None if absent else place(size, layout, fill)
        operands[name + "2"] = None if absent else place(size, layout, normal)
    return operands


def _present(draw: Norm) -> list[str]:
    there = (True, *draw.affine)
    return [name for name, present in zip(ARGUMENTS, there, strict=True) if present]


def _without_tasks(draw: Norm) -> bool:
    return all(name in draw.shared for name in _present(draw))


def _results(draw: Norm, o: Operands, function: Callable) -> list[Tensor]:
    """The result and the derivatives of an operation."""
    if draw.operation == "tangent":
        return _tangent(draw, o, function)
    arguments = {name: o[name] for name in ARGUMENTS}
    for name in draw.wanted:
        arguments[name] = arguments[name].detach().requires_grad_()
    wanted = [arguments[name] for name in draw.wanted]
    y = function(*arguments.values(), **draw.options)
    if draw.operation == "gradients":
        return [y.detach(), *torch.autograd.grad(y, wanted, o["grad"])]
    grad = o["grad"].detach().requires_grad_()
    first = torch.autograd.grad(y, wanted, grad, create_graph=True)
    inner = sum((f * o[name + "2"]).sum() for f, name in zip(first, draw.wanted, strict=True))
    second = torch.autograd.grad(inner, [*wanted, grad], materialize_grads=True)
    return [y.detach(), *second]


def _tangent(draw: Norm, o: Operands, function: Callable) -> list[Tensor]:
    """The result and its derivative along the directions of what is wanted, in forward mode."""

    def of_wanted(*wanted: Tensor) -> Tensor:
        arguments = {name: o[name] for name in ARGUMENTS}
        arguments.update(zip(draw.wanted, wanted, strict=True))
        return function(*arguments.values(), **draw.options)

    at = tuple(o[name] for name in draw.wanted)
    along = tuple(o[name + "2"] for name in draw.wanted)
    return list(torch.func.jvp(of_wanted, at, along))


def _steady(draw: Norm, o: Operands) -> Tensor:
    """Channels whose derivatives rounding cannot change: none of their values lies at a kink.

    (T, C) or (C,). Before the norm, values are compared as they come: equal ones are ties, which go
    to the first, and so do those that are equal before a norm.
    """
    if draw.order == "act_pool_norm":
        shape = (draw.channels,) if _without_tasks(draw) else (draw.tasks, draw.channels)
        return torch.ones(shape, dtype=torch.bool)
    h = reference.norm_act_pool(o["x"], o["weight"], o["bias"], eps=draw.eps, activation="none")
    near = 100 * BOUND[draw.dtype] * _scales(draw, o)[0]
    unsteady = torch.zeros(h.shape[:-4] + h.shape[-3:-2], dtype=torch.bool)
    if draw.pool:
        values, sources = _windows(h), _windows(o["x"].expand_as(h))
        best = values.argmax(-1, keepdim=True)
        close = values.gather(-1, best) - values < near
        unsteady |= (close & (sources != sources.gather(-1, best))).any(-1).any((-1, -2)).any(-2)
        h = values.amax(-1)
    if draw.activation == "relu":
        unsteady |= (h.abs() < near).any((-1, -2)).any(-2)
    return ~unsteady


def _windows(h: Tensor) -> Tensor:
    """(..., H, W) -> (..., H // 2, W // 2, 4)."""
    flat = F.unfold(h.reshape(-1, 1, *h.shape[-2:]), 2, stride=2).mT
    return flat.reshape(*h.shape[:-2], h.shape[-2] // 2, h.shape[-1] // 2, 4)


def _where(steady: Tensor, result: Tensor) -> Tensor:
    """``result`` (T, N, C, H, W) or (T, C), with or without T: zero where not steady."""
    image = result.dim() >= 4
    has_tasks = result.dim() in (2, 5)
    if steady.dim() == 2 and not has_tasks:
        steady = steady.all(0)
    if image:
        steady = steady[..., None, :, None, None]
    return result.masked_fill(~steady, 0.0)


def _scales(draw: Norm, o: Operands) -> list[Tensor]:
    """How large the terms of each result may be, in its order: products of the largest factors."""
    source = o["x"]
    if draw.order == "act_pool_norm":
        source = source.relu() if draw.activation == "relu" else source
        source = _windows(source).amax(-1) if draw.pool else source
    variance, mean = torch.var_mean(source, (-4, -2, -1), correction=0, keepdim=True)
    deviation = (variance + draw.eps).sqrt()
    largest = {name: 0.0 if t is None else t.abs().amax().item() for name, t in o.items()}
    weight = 1.0 if o["weight"] is None else largest["weight"]
    x = 1 + ((source - mean) / deviation).abs().amax()  # of normalised values
    x = x * (1 + (source.abs().amax((-4, -2, -1), keepdim=True) / deviation).amax())
    slope = 1 + 1 / deviation.amin()
    terms = source.numel() / draw.channels
    y = weight * x + largest["bias"]
    if draw.operation == "gradients":
        each = {"x": weight * slope * largest["grad"] * x, "weight": terms * largest["grad"] * x}
        each["bias"] = terms * largest["grad"]
        return [y, *(torch.as_tensor(each[name]) for name in draw.wanted)]
    moves = largest["x2"] * slope * x**2
    in_grad = weight * moves + largest["weight2"] * x + largest["bias2"]
    if draw.operation == "tangent":
        return [y, in_grad]
    change = largest["grad"] * slope * x * (weight * moves + largest["weight2"] * x)
    each = {"x": change, "weight": terms * largest["grad"] * moves, "bias": terms * moves}
    return [y, *(each[name] for name in draw.wanted), in_grad]


@st.composite
def draws(draw, *operations: str) -> Norm:
    """Calls of some of OPERATIONS, or of all."""
    pool = draw(st.booleans())
    size = draw(st.tuples(*[st.integers(2 if pool else 1, 23)] * 2))
    affine = draw(st.tuples(st.booleans(), st.booleans()))
    there = [n for n, present in zip(ARGUMENTS, (True, *affine), strict=True) if present]
    wanted = draw(st.sets(st.sampled_from(there), min_size=1))
    return Norm(
        operation=draw(st.sampled_from(operations or OPERATIONS)),
        tasks=draw(st.integers(1, 4)),
        samples=draw(st.integers(1, 6)),
        channels=draw(st.one_of(st.integers(1, 5), st.integers(1, 40))),
        size=size,
        order=draw(st.sampled_from(ORDERS)),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        pool=pool,
        eps=draw(st.sampled_from((1e-5, 1e-3, 0.1))),
        affine=affine,
        values=draw(st.sampled_from(VALUES)),
        shared=tuple(name for name in there if draw(st.sampled_from((False, False, True)))),
        wanted=tuple(name for name in there if name in wanted),
        layouts=tuple(draw(st.sampled_from(tuple(LAYOUTS))) for _ in range(4)),
        dtype=draw(st.sampled_from(tuple(BOUND))),
        threads=draw(st.sampled_from(THREADS)),
        isa=draw(st.sampled_from(INSTRUCTION_SETS)),
        data=draw(st.integers(0, 2**20)),
    )
