"""bfloat16 and float16 inputs of the Triton kernels on CUDA: summed in float32, rounded once."""

import pytest
import torch
from support.op_calls import conv_calls, norm_calls
from support.triton_kernels import DEVICE, assert_close, bfloat16_products, on_device, runs_kernels

from metasparse_ext.ops import backends, cuda

pytestmark = [*runs_kernels, pytest.mark.usefixtures(bfloat16_products.__name__)]
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
NARROW_OPS = [op for op in cuda.OPS if cuda.OPS[op].module in ("masked_conv", "norm_act_pool")]


def positive(*size):
    """Numbers whose sums grow: added up in 16 bits, they would soon not change any more."""
    return torch.rand(size) + 0.5


def calls():
    """Every op on sums of some hundred terms: channels, pixels, elements of a channel."""
    long = {"draw": positive, "channels": 33, "image": (15, 14)}
    return {**conv_calls(**long), **norm_calls(offset=3, side=12)}


def cast(args, dtype):
    floating = lambda a: isinstance(a, torch.Tensor) and a.is_floating_point()  # noqa: E731
    return [a.to(dtype) if floating(a) else a for a in args]


def listed(results):
    return [results] if isinstance(results, torch.Tensor) else list(results)


@DTYPES
@pytest.mark.parametrize("op", NARROW_OPS)
def test_results_are_those_of_float64_rounded(op, dtype):
    args = cast(calls()[op], dtype)
    with backends.backend("triton", "cuda"):
        choice = cuda.choose(op, tuple(args))
    assert choice.backend == "triton"
    results = listed(cuda.run_choice(op, choice, on_device(*args)))
    # Half a unit in the last place and what float32 adds; the interpreter cuts bfloat16 off.
    bound = 1 if dtype == torch.bfloat16 and DEVICE == "cpu" else 0.51
    expected = listed(getattr(torch.ops.metasparse, op)(*cast(args, torch.float64)))
    for mine, theirs in zip(results, expected, strict=True):
        assert mine.dtype == (dtype if theirs.is_floating_point() else theirs.dtype)
        assert_close(mine.cpu(), theirs, bound * torch.finfo(dtype).eps)
