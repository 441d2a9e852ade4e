"""The CUDA C++ convolutions against float64 convolutions of the definition, emulated on a CPU.

What the emulation sees and what it does not: test_cuda_kernels.py.
"""

import re
import shutil

import pytest
import torch
from support import cpu_kernels, cuda_emulator
from support.cpu_kernels import Case
from torch import Tensor

pytestmark = [
    pytest.mark.skipif(shutil.which(cuda_emulator.COMPILER) is None, reason="no C++ compiler"),
    pytest.mark.usefixtures("poisoned_memory", "one_thread"),
]
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}

STRIDE1 = [
    Case(2, 5, 4, 3, 1, 1),
    Case(2, 3, 5, 7, 9, 11),
    Case(1, 2, 3, 4, 9, 8, padding=(0, 0)),
    Case(1, 1, 2, 3, 23, 37),
    Case(1, 2, 70, 35, 6, 5),
]
STRIDE2 = [
    Case(2, 5, 4, 3, 2, 1, stride=(2, 2)),
    Case(2, 4, 9, 6, 7, 5, stride=(2, 2)),
    Case(1, 3, 3, 8, 8, 6, stride=(2, 2), padding=(0, 0)),
    Case(1, 1, 2, 3, 25, 70, stride=(2, 2)),
    Case(1, 2, 35, 70, 6, 5, stride=(2, 2)),
]
# Images cut in both directions, by tiles that do not divide them.
WIDE = [Case(1, 1, 2, 3, 7, 85), Case(2, 1, 3, 2, 12, 67, padding=(0, 0))]
CALLS = [pytest.param(case, id=str(case)) for case in STRIDE1 + STRIDE2 + WIDE]


@pytest.fixture(scope="module")
def ops():
    return cuda_emulator.load()


def draw(case: Case, mask_kind: str, dtype: torch.dtype):
    """Operands for the kernels, their pruned weights NaN, and the results in float64."""
    x = torch.randn(case.tasks, case.samples, case.inputs, case.height, case.width).double()
    weight = torch.randn(case.tasks, case.outputs, case.inputs, 3, 3).double()
    bias = torch.randn(case.tasks, case.outputs).double()
    mask = cpu_kernels.make_mask(mask_kind, case)
    leaves = (x.requires_grad_(), weight.requires_grad_())
    y = cpu_kernels.defined(*leaves, mask, bias, case)
    grad = torch.randn(y.shape).double()
    expected = (y, *torch.autograd.grad(y, leaves, grad))
    if mask is not None:
        pruned = (mask == 0)[..., None, None]
        weight = weight.detach().masked_fill(pruned, float("nan"))
    operands = (x, weight, mask, bias, grad)
    return [None if t is None else t.detach().to(dtype) for t in operands], expected


def convolve(ops, case: Case, x, weight, mask, bias, grad) -> list[Tensor]:
    """The forward pass and its gradients in input and weight."""
    window = (case.stride, case.padding)
    return [
        ops.masked_conv(x, weight, mask, bias, *window),
        ops.masked_conv_input_grad(grad, weight, mask, [case.height, case.width], *window),
        ops.masked_conv_weight_grad(grad, x, mask, [3, 3], *window),
    ]


@pytest.mark.parametrize("mask_kind", cpu_kernels.MASKS)
@pytest.mark.parametrize("case", CALLS)
def test_convolution_is_its_definition(ops, case, mask_kind):
    for dtype, tolerance in TOLERANCE.items():
        operands, expected = draw(case, mask_kind, dtype)
        for result, value in zip(convolve(ops, case, *operands), expected, strict=True):
            assert result.shape == value.shape
            assert cpu_kernels.relative_error(result, value) < tolerance


@pytest.mark.parametrize("mask_kind", ["none", "half", "empty"])
@pytest.mark.parametrize("case", CALLS)
def test_a_pair_is_the_sum_of_two(ops, case, mask_kind):
    """The second term has a mask of its own, or none."""
    window = (case.stride, case.padding)
    size = [case.height, case.width]
    for dtype, tolerance in TOLERANCE.items():
        (x1, w1, m1, bias, g1), first = draw(case, mask_kind, dtype)
        (x2, w2, m2, no_bias, g2), second = draw(case, "weighted", dtype)
        y2 = second[0] - no_bias.double()[:, None, :, None, None]
        other = ops.masked_conv_weight_grad(g2, x2, m1, [3, 3], *window)
        results = [
            ops.masked_conv_pair(x1, w1, m1, x2, w2, m2, bias, *window),
            ops.masked_conv_input_grad_pair(g1, w1, m1, g2, w2, m2, size, *window),
            ops.masked_conv_weight_grad_pair(g1, x1, g2, x2, m1, [3, 3], *window),
        ]
        expected = [first[0] + y2, first[1] + second[1], first[2] + other.double()]
        for result, value in zip(results, expected, strict=True):
            assert result.shape == value.shape
            assert cpu_kernels.relative_error(result, value) < 2 * tolerance


def test_the_sums_of_a_weight_gradient_may_be_shared_by_many_warps(ops):
    case = Case(1, 9, 3, 5, 5, 64)
    operands, expected = draw(case, "half", torch.float32)
    *_, result = convolve(ops, case, *operands)
    assert cpu_kernels.relative_error(result, expected[2]) < 2e-6
    x, _, mask, _, grad = operands
    window = ([3, 3], case.stride, case.padding)
    pair = ops.masked_conv_weight_grad_pair(grad, x, grad, x, mask, *window)
    assert cpu_kernels.relative_error(pair, 2 * expected[2]) < 2e-6


def test_the_mask_gradient_is_dense(ops):
    x, grad = torch.randn(2, 3, 4, 5, 6).double(), torch.randn(2, 3, 7, 5, 6).double()
    weight, mask = torch.randn(2, 7, 4, 3, 3).double(), torch.zeros(2, 7, 4).double()
    mask.requires_grad_()
    y = torch.ops.metasparse.masked_conv(x, weight, mask, None, [1, 1], [1, 1])
    (expected,) = torch.autograd.grad(y, mask, grad)
    result = ops.masked_conv_mask_grad(grad, x, weight, [1, 1], [1, 1])
    torch.testing.assert_close(result, expected)


def test_operands_lie_in_memory_as_they_like(ops):
    """Tasks that share weights, strided images, a transposed mask."""
    x = torch.randn(3, 8, 10, 9, 5).permute(0, 1, 4, 3, 2)[:, ::2]
    weight = torch.randn(6, 5, 3, 3).expand(3, 6, 5, 3, 3)
    mask = (torch.rand(3, 5, 6) < 0.5).float().transpose(1, 2)
    for operands in ((x, weight, mask), (x, weight, mask[:1].expand(3, 6, 5))):
        result = ops.masked_conv(*operands, None, [1, 1], [1, 1])
        dense = (t.contiguous() for t in operands)
        assert torch.equal(result, ops.masked_conv(*dense, None, [1, 1], [1, 1]))


def test_nothing_to_do(ops):
    x, weight = torch.randn(2, 0, 3, 5, 5), torch.randn(2, 4, 3, 3, 3)
    y = ops.masked_conv(x, weight, None, None, [1, 1], [1, 1])
    assert y.shape == (2, 0, 4, 5, 5)
    y = ops.masked_conv(
        torch.randn(1, 2, 0, 5, 5), torch.randn(1, 4, 0, 3, 3), None, None, [1, 1], [1, 1]
    )
    assert torch.equal(y, torch.zeros(1, 2, 4, 5, 5))


def test_the_weight_gradient_of_no_images_is_zero(ops):
    x, grad = torch.randn(2, 0, 3, 5, 5), torch.randn(2, 0, 4, 5, 5)
    result = ops.masked_conv_weight_grad(grad, x, None, [3, 3], [1, 1], [1, 1])
    assert torch.equal(result, torch.zeros(2, 4, 3, 3, 3))


REFUSED = {
    "strided unlike": (
        ((3, 3), (1, 2), (1, 1)),
        r"expected stride \[1, 1\] or \[2, 2\], got \[1, 2\]",
    ),
    "stride": (((3, 3), (3, 3), (1, 1)), r"got \[3, 3\]"),
    "padding": (((3, 3), (1, 1), (2, 2)), r"expected padding \[0, 0\] or \[1, 1\], got \[2, 2\]"),
    "kernel": (((1, 1), (1, 1), (0, 0)), r"expected 3x3 kernels, got \[1, 1\]"),
}


@pytest.mark.parametrize(("window", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_taken_is_refused_with_a_reason(ops, window, reason):
    kernel, stride, padding = window
    x, weight = torch.empty(1, 1, 2, 9, 9), torch.empty(1, 3, 2, *kernel)
    call = (x, weight, None, None, stride, padding)
    assert re.search(reason, ops.masked_conv_refusal(*call))
    with pytest.raises(ValueError, match=f"masked_conv: .* do not take this call: .*{reason}"):
        ops.masked_conv(*call)
    with pytest.raises(TypeError, match="float32 or float64, got float16"):
        ops.masked_conv_refusal(x.half(), weight.half(), *call[2:])


def test_every_op_says_what_it_refuses(ops):
    x, weight, grad = (
        torch.empty(1, 1, 2, 9, 9),
        torch.empty(1, 3, 2, 3, 3),
        torch.empty(1, 1, 3, 9, 9),
    )
    first, size, window = (grad, weight, None), [9, 9], ([1, 1], [1, 1])
    calls = {
        "masked_conv": (x, weight, None, None, *window),
        "masked_conv_pair": (x, weight, None, x, weight, None, None, *window),
        "masked_conv_input_grad": (*first, size, *window),
        "masked_conv_input_grad_pair": (*first, *first, size, *window),
        "masked_conv_weight_grad": (grad, x, None, [3, 3], *window),
        "masked_conv_weight_grad_pair": (grad, x, grad, x, None, [3, 3], *window),
        "masked_conv_mask_grad": (grad, x, weight, *window),
    }
    for op, call in calls.items():
        assert getattr(ops, f"{op}_refusal")(*call) == ""
        with pytest.raises(ValueError, match="expected stride"):
            getattr(ops, f"{op}_refusal")(*call[:-2], [0, 1], [1, 1])


def test_shared_memory_is_that_of_the_device(ops, monkeypatch):
    """Images are cut to what the device has; what cannot be cut further is refused."""
    case = Case(1, 4, 3, 5, 33, 40)
    operands, expected = draw(case, "half", torch.float32)
    for kib in (227, 163, 99, 64):
        monkeypatch.setenv("METASPARSE_EMULATED_SHARED", str(kib << 10))
        result = convolve(ops, case, *operands)[0]
        assert cpu_kernels.relative_error(result, expected[0]) < 2e-6
    monkeypatch.setenv("METASPARSE_EMULATED_SHARED", "9000")
    x, weight, mask, bias, _ = operands
    with pytest.raises(ValueError, match=r"a block needs \d+ bytes of shared memory, .* has 9000"):
        ops.masked_conv(x, weight, mask, bias, case.stride, case.padding)
