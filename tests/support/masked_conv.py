"""Random calls of the masked convolution family against their definition in float64."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

import metasparse_ext as ms
from metasparse_ext import reference
from support.comparison import changed, first_difference
from support.machine import INSTRUCTION_SETS, THREADS, conditions
from support.operands import LAYOUTS, place

# Those that serve every window come twice, for half of the windows are only theirs.
BACKENDS = (
    *("automatic", "direct", "few_channels"),
    *("automatic", "direct", "few_channels", "precise", "library"),
    *("winograd2", "winograd3", "winograd4", "winograd5", "polyphase2", "polyphase3"),
)
# The ops of the dispatcher, then what autograd makes of them.
OPERATIONS = (
    *("forward", "input_grad", "weight_grad", "mask_grad"),
    *("pair", "input_grad_pair", "weight_grad_pair", "backward"),
    *("gradients", "hessian"),
)
MASKS = ("none", "binary", "real", "empty", "ones")
ARGUMENTS = ("x", "weight", "mask", "bias")
# Largest error over the sum of the magnitudes of the terms (docs/kernels.md, Accuracy).
EXACT, BOUND = 2e-6, 1e-5
FLOAT32_BOUND = dict.fromkeys(("automatic", "winograd3", "winograd4", "winograd5"), BOUND)
FLOAT64_BOUND = 1e-12
# What each term of a float32 sum may add to its relative error; equal terms all round one way.
HALF_ULP = 2.0**-24

# Layouts in which elements share memory.
SHARING = ("expanded", "constant", "overlapping")
DERIVED = ("gradients", "hessian")
MOST_PRODUCTS = 2_000_000

Operands = dict[str, Tensor | None]


class Conv(NamedTuple):
    """One call. ``layouts`` are of x, weight, mask, bias and grad; ``shared`` names the arguments
    without a task axis, ``wanted`` the gradients that are asked for."""

    operation: str = "forward"
    tasks: int = 1
    samples: int = 1
    inputs: int = 1
    outputs: int = 1
    size: tuple[int, int] = (1, 1)
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    mask: str = "none"
    density: float = 0.5
    biased: bool = False
    shared: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ("x", "weight")
    layouts: tuple[str, ...] = ("contiguous",) * 5
    dtype: str = "float64"
    threads: int = 1
    isa: str = INSTRUCTION_SETS[-1]
    backend: str = "automatic"
    data: int = 0

    def check(self) -> str | None:
        """What is wrong with the result, or None."""
        operands = _Operands(self)
        before = {k: v.clone() for k, v in operands.given.items() if v is not None}
        try:
            with conditions(self.threads, self.backend):
                results = _CALLS[self.operation](self, operands.given)
        except (ValueError, RuntimeError) as error:  # the latter from a backward pass
            refusal = f"backend {self.backend} does not support this"
            if refusal in str(error) and not self._backend_serves():
                return None
            raise
        if not self._backend_serves():
            return f"backend {self.backend} accepts what it cannot serve"
        expected = _DEFINITIONS[self.operation](self, operands.exact)
        scales = _DEFINITIONS[self.operation](self, operands.magnitudes())
        bound = FLOAT64_BOUND
        if self.dtype == "float32":
            bound = FLOAT32_BOUND.get(self.backend, EXACT)
            x, weight, _, _, grad = self.layouts
            if (x, weight, grad).count("constant") > 1:
                bound = max(bound, self._longest_sum() * HALF_ULP)
        return changed(before, operands.given) or first_difference(
            results, expected, scales, bound, getattr(torch, self.dtype)
        )

    def _longest_sum(self) -> int:
        """How many products are added up at most, in any result."""
        height, width = self.output_size
        taps = self.kernel[0] * self.kernel[1]
        return max(max(self.inputs, self.outputs) * taps, self.samples * height * width)

    def _backend_serves(self) -> bool:
        if self.backend == "few_channels":  # it has no input gradient
            through_x = self.operation in ("backward", *DERIVED) and "x" in self.wanted
            return not (through_x or self.operation in ("input_grad", "input_grad_pair"))
        if self.backend.startswith("winograd"):
            return self.kernel == (3, 3) and self.stride == (1, 1)
        if self.backend.startswith("polyphase"):
            return (self.kernel, self.stride, self.padding) == ((3, 3), (2, 2), (1, 1))
        return True

    @property
    def output_size(self) -> tuple[int, ...]:
        windows = zip(self.size, self.kernel, self.stride, self.padding, strict=True)
        return tuple((size + 2 * pad - kernel) // step + 1 for size, kernel, step, pad in windows)

    @property
    def products(self) -> int:
        """Multiplications of a dense call, which is how long it takes."""
        height, width = self.output_size
        taps = self.kernel[0] * self.kernel[1]
        return self.tasks * self.samples * self.inputs * self.outputs * height * width * taps

    @property
    def window(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return self.stride, self.padding


class _Operands:
    """The arguments of a call: as given, and exact copies (T, ...) in float64."""

    def __init__(self, draw: Conv) -> None:
        self._generator = torch.Generator().manual_seed(draw.data)
        self._draw = draw
        d, layout = draw, dict(zip((*ARGUMENTS, "grad"), draw.layouts, strict=True))
        shapes = {
            "x": (d.samples, d.inputs, *d.size),
            "weight": (d.outputs, d.inputs, *d.kernel),
            "mask": (d.outputs, d.inputs),
            "bias": (d.outputs,),
            "grad": (d.samples, d.outputs, *d.output_size),
        }
        if d.mask == "none":
            del shapes["mask"]
        if not d.biased:
            del shapes["bias"]
        fills = {"mask": self._mask}
        self.given: Operands = {}
        # Terms of a sum of two, and directions of a derivative: the same layouts once more.
        for suffix in ("", "2"):
            for name, shape in shapes.items():
                fill = fills.get(name, self._normal)
                self.given[name + suffix] = self._with_tasks(name, shape, layout[name], fill)
        self.exact = {name: t.double().contiguous().clone() for name, t in self.given.items()}
        self._poison_pruned()

    def magnitudes(self) -> Operands:
        return {name: t.abs() for name, t in self.exact.items()}

    def _with_tasks(self, name: str, shape: tuple[int, ...], layout: str, fill) -> Tensor:
        if name not in self._draw.shared:
            return place((self._draw.tasks, *shape), layout, fill)
        return place((1, *shape), layout, fill).expand(self._draw.tasks, *shape)

    def _normal(self, shape) -> Tensor:
        return torch.randn(tuple(shape), generator=self._generator, dtype=self._dtype)

    def _mask(self, shape) -> Tensor:
        kept = torch.rand(tuple(shape), generator=self._generator) < self._draw.density
        kind = self._draw.mask
        if kind in ("ones", "empty"):
            kept = torch.full_like(kept, kind == "ones")
        return kept * self._normal(shape) if kind == "real" else kept.to(self._dtype)

    def _poison_pruned(self) -> None:
        """NaN into the weights of pruned kernels, which must not be read; the gradient in the mask
        needs them, and where elements share memory an active kernel may need them too. What is the
        second term of a sum is a direction of the Hessian, which is read."""
        draw = self._draw
        wants_mask = draw.operation == "mask_grad" or "mask" in draw.wanted
        shares = draw.layouts[1] in SHARING or ("weight" in draw.shared) > ("mask" in draw.shared)
        if draw.mask == "none" or wants_mask or shares:
            return
        tasks = slice(0, 1) if "weight" in draw.shared else slice(None)
        for suffix in ("",) if draw.operation == "hessian" else ("", "2"):
            weight, mask = self.given["weight" + suffix][tasks], self.given["mask" + suffix][tasks]
            weight.copy_(weight.masked_fill((mask == 0)[..., None, None], torch.nan))

    @property
    def _dtype(self) -> torch.dtype:
        return getattr(torch, self._draw.dtype)


def _grads(draw: Conv, o: Operands, of: str, suffix: str = "") -> Tensor:
    """The derivative of <grad, conv> in one argument, of the definition."""
    arguments = {name: o.get(name + suffix) for name in ("x", "weight", "mask")}
    if arguments["mask"] is None:
        size = arguments["weight"].shape[:3]
        arguments["mask"] = torch.ones(size, dtype=torch.float64)
    leaf = arguments[of] = arguments[of].clone().requires_grad_()
    y = reference.masked_conv(*arguments.values(), None, *draw.window)
    return torch.autograd.grad(y, leaf, o["grad" + suffix])[0]


def _forward(draw: Conv, o: Operands, suffix: str = "") -> Tensor:
    bias = o.get("bias") if suffix == "" else None
    arguments = (o["x" + suffix], o["weight" + suffix], o.get("mask" + suffix), bias)
    return reference.masked_conv(*arguments, *draw.window)


def _define_weight_pair(draw: Conv, o: Operands) -> Tensor:
    """Both terms have the first one's mask."""
    second = {**o, "mask2": o.get("mask")}
    return _grads(draw, o, "weight") + _grads(draw, second, "weight", "2")


def _define_backward(draw: Conv, o: Operands) -> list[Tensor]:
    """Gradients in x, weight and bias; a gradient that is not wanted is empty."""
    nothing = torch.empty(draw.tasks, 0, dtype=torch.float64)
    dense = "mask" in draw.wanted
    return [
        _grads(draw, o, "x") if "x" in draw.wanted else nothing,
        _grads(draw, {**o, "mask": None} if dense else o, "weight"),
        o["grad"].sum((1, 3, 4)) if "bias" in draw.wanted else nothing,
    ]


def _leaves(draw: Conv, o: Operands) -> Operands:
    """The arguments of the public function: those that the tasks share have no task axis."""
    leaves = {}
    for name in ARGUMENTS:
        tensor = o.get(name)
        if tensor is not None:
            tensor = tensor[0] if name in draw.shared else tensor
            tensor = tensor.detach().requires_grad_(name in draw.wanted)
        leaves[name] = tensor
    return leaves


def _defined(draw: Conv, x, weight, mask, bias) -> Tensor:
    """The definition of what the public function computes."""
    arguments = {"x": x, "weight": weight, "mask": mask, "bias": bias}
    alone = all(name in draw.shared for name, t in arguments.items() if t is not None)
    tasks = 1 if alone else draw.tasks
    for name, tensor in arguments.items():
        if tensor is not None and name in draw.shared:
            arguments[name] = tensor.expand(tasks, *tensor.shape)
    y = reference.masked_conv(*arguments.values(), *draw.window)
    return y[0] if alone else y


def _computed(draw: Conv, x, weight, mask, bias) -> Tensor:
    return ms.masked_conv2d(x, weight, mask, bias, *draw.window)


def _gradients(draw: Conv, o: Operands, function: Callable) -> list[Tensor]:
    """The result and the gradients that are wanted."""
    leaves = _leaves(draw, o)
    y = function(draw, **leaves)
    grad = o["grad"] if y.dim() == 5 else o["grad"][0]
    return [y.detach(), *torch.autograd.grad(y, [leaves[name] for name in draw.wanted], grad)]


def _hessian(draw: Conv, o: Operands, function: Callable) -> list[Tensor]:
    """The product of a direction with the Hessian of <grad, y>, its gradient in grad included."""
    leaves = _leaves(draw, o)
    wanted = [leaves[name] for name in draw.wanted]
    y = function(draw, **leaves)
    grad = (o["grad"] if y.dim() == 5 else o["grad"][0]).detach().requires_grad_()
    first = torch.autograd.grad(y, wanted, grad, create_graph=True)
    # The second terms serve as the direction.
    directions = _leaves(draw, {name: o.get(name + "2") for name in ARGUMENTS})
    inner = sum(
        (f * directions[name].detach()).sum() for f, name in zip(first, draw.wanted, strict=True)
    )
    return list(torch.autograd.grad(inner, [*wanted, grad], materialize_grads=True))


_DEFINITIONS: dict[str, Callable[[Conv, Operands], list[Tensor]]] = {
    "forward": lambda d, o: [_forward(d, o)],
    "input_grad": lambda d, o: [_grads(d, o, "x")],
    "weight_grad": lambda d, o: [_grads(d, o, "weight")],
    "mask_grad": lambda d, o: [_grads(d, {**o, "mask": None}, "mask")],
    "pair": lambda d, o: [_forward(d, o) + _forward(d, o, "2")],
    "input_grad_pair": lambda d, o: [_grads(d, o, "x") + _grads(d, o, "x", "2")],
    "weight_grad_pair": lambda d, o: [_define_weight_pair(d, o)],
    "backward": _define_backward,
    "gradients": lambda d, o: _gradients(d, o, _defined),
    "hessian": lambda d, o: _hessian(d, o, _defined),
}


def _pick(o: Operands, *names: str) -> list[Tensor | None]:
    return [o.get(name) for name in names]


_OPS = torch.ops.metasparse
_FIRST, _SECOND = ("grad", "weight", "mask"), ("grad2", "weight2", "mask2")
_TERMS = ("x", "weight", "mask", "x2", "weight2", "mask2", "bias")
_CALLS: dict[str, Callable[[Conv, Operands], list[Tensor]]] = {
    "forward": lambda d, o: [_OPS.masked_conv(*_pick(o, *ARGUMENTS), *d.window)],
    "input_grad": lambda d, o: [_OPS.masked_conv_input_grad(*_pick(o, *_FIRST), d.size, *d.window)],
    "weight_grad": lambda d, o: [
        _OPS.masked_conv_weight_grad(*_pick(o, "grad", "x", "mask"), d.kernel, *d.window)
    ],
    "mask_grad": lambda d, o: [
        _OPS.masked_conv_mask_grad(*_pick(o, "grad", "x", "weight"), *d.window)
    ],
    "pair": lambda d, o: [_OPS.masked_conv_pair(*_pick(o, *_TERMS), *d.window)],
    "input_grad_pair": lambda d, o: [
        _OPS.masked_conv_input_grad_pair(*_pick(o, *_FIRST, *_SECOND), d.size, *d.window)
    ],
    "weight_grad_pair": lambda d, o: [
        _OPS.masked_conv_weight_grad_pair(
            *_pick(o, "grad", "x", "grad2", "x2", "mask"), d.kernel, *d.window
        )
    ],
    "backward": lambda d, o: list(
        _OPS.masked_conv_backward(
            *_pick(o, "grad", "x", "weight", "mask"),
            *(name in d.wanted for name in ("x", "mask", "bias")),
            *d.window,
        )
    ),
    "gradients": lambda d, o: _gradients(d, o, _computed),
    "hessian": lambda d, o: _hessian(d, o, _computed),
}


def draws(*operations: str) -> SearchStrategy[Conv]:
    """Calls of some of OPERATIONS, or of all, small enough for a few milliseconds."""
    return _draw(operations or OPERATIONS).filter(lambda draw: draw.products <= MOST_PRODUCTS)


@st.composite
def _draw(draw, operations: tuple[str, ...]) -> Conv:
    kernel, stride, padding = draw(_windows())
    size = tuple(
        draw(st.integers(max(1, k - 2 * pad), 20)) for k, pad in zip(kernel, padding, strict=True)
    )
    operation = draw(st.sampled_from(operations))
    mask, biased = draw(st.sampled_from(MASKS)), draw(st.booleans())
    present = [
        name
        for name, there in zip(ARGUMENTS, (True, True, mask != "none", biased), strict=True)
        if there
    ]
    shared = tuple(name for name in present if draw(st.sampled_from((False, False, True))))
    return Conv(
        operation=operation,
        tasks=draw(st.integers(1, 4)),
        samples=draw(st.integers(1, 6)),
        inputs=draw(_channels()),
        outputs=draw(_channels()),
        size=size,
        kernel=kernel,
        stride=stride,
        padding=padding,
        mask=mask,
        density=draw(st.sampled_from((0.5, 0.0, 0.05, 0.2, 0.8, 1.0))),
        biased=biased,
        shared=shared,
        wanted=_some(draw, present) if operation in ("backward", *DERIVED) else (),
        layouts=tuple(draw(st.sampled_from(tuple(LAYOUTS))) for _ in range(5)),
        dtype=draw(st.sampled_from(("float64", "float32"))),
        threads=draw(st.sampled_from(THREADS)),
        isa=draw(st.sampled_from(INSTRUCTION_SETS)),
        backend=draw(st.sampled_from(BACKENDS)),
        data=draw(st.integers(0, 2**20)),
    )


def _some(draw, names: list[str]) -> tuple[str, ...]:
    """One of ``names`` or more."""
    chosen = draw(st.sets(st.sampled_from(names), min_size=1))
    return tuple(name for name in names if name in chosen)


def _channels() -> SearchStrategy[int]:
    return st.one_of(st.integers(1, 9), st.integers(1, 70))


@st.composite
def _windows(draw):
    """Kernel, stride and padding: those of the fast schemes in half of the draws."""
    kind = draw(st.sampled_from(("any", "any", "phases", "winograd", "winograd", "polyphase")))
    pair = lambda least, most: draw(st.tuples(*[st.integers(least, most)] * 2))  # noqa: E731
    if kind == "winograd":
        return (3, 3), (1, 1), pair(0, 6)
    if kind == "polyphase":
        return (3, 3), (2, 2), (1, 1)
    if kind == "phases":  # one or two taps of a kernel meet a phase of the stride
        step = draw(st.integers(2, 4))
        kernel = draw(st.integers(step, min(7, 2 * step)))
        return (kernel, kernel), (step, step), pair(0, 2)
    return pair(1, 7), pair(1, 4), pair(0, 6)
