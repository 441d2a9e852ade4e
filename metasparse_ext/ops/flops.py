"""What ``torch.utils.flop_counter.FlopCounterMode`` counts of the ops.

The convention is torch's own: two operations a multiply-add of a convolution or a matrix product,
nothing for a bias or an elementwise op. A mask's values are data, which a count of shapes cannot
see, so every kernel counts, pruned or not: ``FlopCounterMode`` gives the dense cost of a masked
convolution, that of ``conv2d`` of the same shapes. The cost under a mask is that of
:func:`metasparse_ext.nn.cost`. Of a backward pass each gradient costs what the forward does, the
mask's too. ``norm_act_pool`` and the masks count nothing, as torch's norms do. Nor do
``softmax_head`` and conjugate gradients' own updates: how many steps they take is data; the
operator's products in a solve count as the ops that they are made of.

torch's counter imports Triton, so it is not imported here: the formulas are registered as soon as
someone else imports it.
"""

import math
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

import torch

from metasparse_ext import _library

Shape = Sequence[int]


def _convolution(outputs: Shape, weight: Shape) -> int:
    """Of outputs (T, N, O, Ho, Wo), or a gradient there, and kernels (T, O, I, kh, kw)."""
    kernels, taps = outputs[1] * math.prod(weight[:3]), math.prod(weight[3:])
    return 2 * kernels * taps * math.prod(outputs[3:])


def _forward(x: Shape, weight: Shape, *_: object, out_shape: Shape, **__: object) -> int:
    return _convolution(out_shape, weight)


def _input_grad(grad: Shape, weight: Shape, *_: object, **__: object) -> int:
    return _convolution(grad, weight)


def _weight_grad(grad: Shape, *_: object, out_shape: Shape, **__: object) -> int:
    return _convolution(grad, out_shape)


def _mask_grad(grad: Shape, x: Shape, weight: Shape, *_: object, **__: object) -> int:
    return _convolution(grad, weight)


def _pair(
    x1: Shape,
    weight1: Shape,
    mask1: Shape | None,
    x2: Shape,
    *_: object,
    out_shape: Shape,
    **__: object,
) -> int:
    return 2 * _convolution(out_shape, weight1)


def _input_grad_pair(grad1: Shape, weight1: Shape, *_: object, **__: object) -> int:
    return 2 * _convolution(grad1, weight1)


def _weight_grad_pair(grad1: Shape, *_: object, out_shape: Shape, **__: object) -> int:
    return 2 * _convolution(grad1, out_shape)


def _backward(
    grad: Shape,
    x: Shape,
    weight: Shape,
    mask: Shape | None,
    input_wanted: bool,
    *_: object,
    **__: object,
) -> int:
    return (1 + bool(input_wanted)) * _convolution(grad, weight)


def _depthwise(x: Shape, weight: Shape, *_: object, out_shape: Shape, **__: object) -> int:
    """Of outputs (T, N, C, Ho, Wo) and kernels (T, C, 1, kh, kw)."""
    return 2 * math.prod(out_shape) * math.prod(weight[3:])


def _depthwise_input_grad(grad: Shape, weight: Shape, *_: object, **__: object) -> int:
    return 2 * math.prod(grad) * math.prod(weight[3:])


def _depthwise_weight_grad(grad: Shape, *_: object, out_shape: Shape, **__: object) -> int:
    return 2 * math.prod(grad) * math.prod(out_shape[3:])


def _linear(x: Shape, weight: Shape, *_: object, **__: object) -> int:
    """Of inputs (T, N, F), or those of the first of two products, and weights (T, O, F)."""
    return 2 * math.prod(x) * weight[1]


def _linear_pair(x1: Shape, weight1: Shape, *_: object, **__: object) -> int:
    return 2 * _linear(x1, weight1)


def _linear_backward(grad: Shape, x: Shape, weight: Shape, *_: object, **__: object) -> int:
    return 2 * _linear(x, weight)


FORMULAS = {
    "masked_conv": _forward,
    "masked_conv_input_grad": _input_grad,
    "masked_conv_weight_grad": _weight_grad,
    "masked_conv_mask_grad": _mask_grad,
    "masked_conv_pair": _pair,
    "masked_conv_input_grad_pair": _input_grad_pair,
    "masked_conv_weight_grad_pair": _weight_grad_pair,
    "masked_conv_backward": _backward,
    "depthwise_conv": _depthwise,
    "depthwise_conv_input_grad": _depthwise_input_grad,
    "depthwise_conv_weight_grad": _depthwise_weight_grad,
    "task_linear": _linear,
    "task_linear_pair": _linear_pair,
    "task_linear_backward": _linear_backward,
}

_COUNTER = "torch.utils.flop_counter"


def _register(counter: ModuleType) -> None:
    for name, formula in FORMULAS.items():
        counter.register_flop_formula(getattr(torch.ops.metasparse, name))(formula)


class _RegisteringLoader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        _register(module)


class _AtImport(MetaPathFinder):
    """Finds torch's counter where it is, and registers the formulas once it is loaded."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _COUNTER:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader) and spec.origin:
            spec.loader = _RegisteringLoader(name, spec.origin)
        return spec


if _library.problem is None:
    if _COUNTER in sys.modules:
        _register(sys.modules[_COUNTER])
    else:
        sys.meta_path.insert(0, _AtImport())
