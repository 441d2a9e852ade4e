"""The CUDA C++ convolutions against float64 convolutions of the definition, emulated on a CPU.

What the emulation sees and what it does not: test_cuda_kernels.py.
"""

import shutil

import pytest
import torch
from support import cpu_kernels, cuda_emulator
from support.cpu_kernels import Case
from torch import Tensor

from metasparse_ext.ops import backends, cuda

pytestmark = [
    pytest.mark.skipif(shutil.which(cuda_emulator.COMPILER) is None, reason="no C++ compiler"),
    pytest.mark.usefixtures("poisoned_memory", "one_thread"),
]
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}
SCHEMES = ["direct", "winograd"]

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
# Pictures cut in both directions, by tiles that do not divide them.
WIDE = [Case(1, 1, 2, 3, 7, 85), Case(2, 1, 3, 2, 12, 67, padding=(0, 0))]
CALLS = [
    *(pytest.param("direct", case, id=f"direct {case}") for case in STRIDE1 + STRIDE2),
    *(pytest.param("winograd", case, id=f"winograd {case}") for case in STRIDE1 + WIDE),
]


@pytest.fixture(scope="module")
def ops():
    """The namespaces of both schemes; weight gradients are the direct one's alone."""
    direct = cuda_emulator.load()
    return {"direct": direct, "winograd": torch.ops.metasparse_winograd}


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


def convolve(ops, scheme: str, case: Case, x, weight, mask, bias, grad) -> list[Tensor]:
    """The forward pass and what the scheme has of gradients."""
    window = (case.stride, case.padding)
    size = [case.height, case.width]
    results = [
        ops[scheme].masked_conv(x, weight, mask, bias, *window),
        ops[scheme].masked_conv_input_grad(grad, weight, mask, size, *window),
    ]
    if scheme == "direct":
        results.append(ops[scheme].masked_conv_weight_grad(grad, x, mask, [3, 3], *window))
    return results


@pytest.mark.parametrize("mask_kind", cpu_kernels.MASKS)
@pytest.mark.parametrize(("scheme", "case"), CALLS)
def test_convolution_is_its_definition(ops, scheme, case, mask_kind):
    for dtype, tolerance in TOLERANCE.items():
        operands, expected = draw(case, mask_kind, dtype)
        for result, value in zip(convolve(ops, scheme, case, *operands), expected, strict=False):
            assert result.shape == value.shape
            assert cpu_kernels.relative_error(result, value) < tolerance


@pytest.mark.parametrize("mask_kind", ["none", "half", "empty"])
@pytest.mark.parametrize(("scheme", "case"), CALLS)
def test_a_pair_is_the_sum_of_two(ops, scheme, case, mask_kind):
    """The second term has a mask of its own, or none."""
    window = (case.stride, case.padding)
    size = [case.height, case.width]
    for dtype, tolerance in TOLERANCE.items():
        (x1, w1, m1, bias, g1), first = draw(case, mask_kind, dtype)
        (x2, w2, m2, no_bias, g2), second = draw(case, "weighted", dtype)
        y2 = second[0] - no_bias.double()[:, None, :, None, None]
        results = [
            ops[scheme].masked_conv_pair(x1, w1, m1, x2, w2, m2, bias, *window),
            ops[scheme].masked_conv_input_grad_pair(g1, w1, m1, g2, w2, m2, size, *window),
        ]
        expected = [first[0] + y2, first[1] + second[1]]
        if scheme == "direct":
            call = (g1, x1, g2, x2, m1, [3, 3], *window)
            results.append(ops[scheme].masked_conv_weight_grad_pair(*call))
            other = ops[scheme].masked_conv_weight_grad(g2, x2, m1, [3, 3], *window)
            expected.append(first[2] + other.double())
        for result, value in zip(results, expected, strict=True):
            assert result.shape == value.shape
            assert cpu_kernels.relative_error(result, value) < 2 * tolerance


def test_the_sums_of_a_weight_gradient_may_be_shared_by_many_warps(ops):
    case = Case(1, 9, 3, 5, 5, 64)
    operands, expected = draw(case, "half", torch.float32)
    *_, result = convolve(ops, "direct", case, *operands)
    assert cpu_kernels.relative_error(result, expected[2]) < 2e-6
    x, _, mask, _, grad = operands
    window = ([3, 3], case.stride, case.padding)
    pair = ops["direct"].masked_conv_weight_grad_pair(grad, x, grad, x, mask, *window)
    assert cpu_kernels.relative_error(pair, 2 * expected[2]) < 2e-6


def test_the_mask_gradient_is_dense(ops):
    x, grad = torch.randn(2, 3, 4, 5, 6).double(), torch.randn(2, 3, 7, 5, 6).double()
    weight, mask = torch.randn(2, 7, 4, 3, 3).double(), torch.zeros(2, 7, 4).double()
    mask.requires_grad_()
    y = torch.ops.metasparse.masked_conv(x, weight, mask, None, [1, 1], [1, 1])
    (expected,) = torch.autograd.grad(y, mask, grad)
    result = ops["direct"].masked_conv_mask_grad(grad, x, weight, [1, 1], [1, 1])
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_operands_lie_in_memory_as_they_like(ops, scheme):
    """Tasks that share weights, strided images, a transposed mask."""
    x = torch.randn(3, 8, 10, 9, 5).permute(0, 1, 4, 3, 2)[:, ::2]
    weight = torch.randn(6, 5, 3, 3).expand(3, 6, 5, 3, 3)
    mask = (torch.rand(3, 5, 6) < 0.5).float().transpose(1, 2)
    for operands in ((x, weight, mask), (x, weight, mask[:1].expand(3, 6, 5))):
        result = ops[scheme].masked_conv(*operands, None, [1, 1], [1, 1])
        dense = (t.contiguous() for t in operands)
        assert torch.equal(result, ops[scheme].masked_conv(*dense, None, [1, 1], [1, 1]))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nothing_to_do(ops, scheme):
    x, weight = torch.randn(2, 0, 3, 5, 5), torch.randn(2, 4, 3, 3, 3)
    y = ops[scheme].masked_conv(x, weight, None, None, [1, 1], [1, 1])
    assert y.shape == (2, 0, 4, 5, 5)
    y = ops[scheme].masked_conv(
        torch.randn(1, 2, 0, 5, 5), torch.randn(1, 4, 0, 3, 3), None, None, [1, 1], [1, 1]
    )
    assert torch.equal(y, torch.zeros(1, 2, 4, 5, 5))


def test_the_weight_gradient_of_no_images_is_zero(ops):
    x, grad = torch.randn(2, 0, 3, 5, 5), torch.randn(2, 0, 4, 5, 5)
    result = ops["direct"].masked_conv_weight_grad(grad, x, None, [3, 3], [1, 1], [1, 1])
    assert torch.equal(result, torch.zeros(2, 4, 3, 3, 3))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "takers"),
    [
        ((3, 3), (1, 1), (1, 1), SCHEMES),
        ((3, 3), (1, 1), (0, 0), SCHEMES),
        ((3, 3), (2, 2), (0, 0), ["direct"]),
        ((3, 3), (3, 3), (1, 1), []),
        ((3, 3), (1, 2), (1, 1), []),
        ((3, 3), (1, 1), (2, 2), []),
        ((1, 1), (1, 1), (0, 0), []),
    ],
)
def test_the_predicates_say_what_is_taken(ops, kernel, stride, padding, takers):
    x, weight = torch.empty(1, 1, 2, 9, 9), torch.empty(1, 3, 2, *kernel)
    call = (x, weight, None, None, stride, padding)
    for scheme, namespace in ops.items():
        assert namespace.masked_conv_supported(*call) is (scheme in takers)
        if scheme not in takers:
            with pytest.raises(ValueError, match=r"masked_conv: .*masked_conv_supported tells"):
                namespace.masked_conv(*call)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_op_has_a_predicate_of_its_arguments(ops, scheme):
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
    }
    if scheme == "direct":
        calls |= {
            "masked_conv_weight_grad": (grad, x, None, [3, 3], *window),
            "masked_conv_weight_grad_pair": (grad, x, grad, x, None, [3, 3], *window),
            "masked_conv_mask_grad": (grad, x, weight, *window),
        }
    for op, call in calls.items():
        assert getattr(ops[scheme], f"{op}_supported")(*call)
        with pytest.raises(ValueError, match="expected stride"):
            getattr(ops[scheme], f"{op}_supported")(*call[:-2], [0, 1], [1, 1])


# ---- as a backend --------------------------------------------------------------------------------


@pytest.fixture
def without_triton(ops, monkeypatch):
    """The key's choice as in a build with CUDA, on a machine without Triton, in full float32."""
    absent = {"triton": "Triton is not installed"}
    monkeypatch.setattr(cuda, "problem", absent.get)
    monkeypatch.setattr(backends, "_cuda", backends.AUTOMATIC)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def call_of(case: Case):
    (x, weight, mask, bias, _), _ = draw(case, "half", torch.float32)
    return x, weight, mask, bias, case.stride, case.padding


@pytest.mark.usefixtures("without_triton")
def test_winograd_is_a_backend_of_the_calls_that_it_takes():
    taken, strided = call_of(Case(2, 3, 5, 7, 9, 11)), call_of(STRIDE2[0])
    names = [choice.backend for choice in cuda.candidates("masked_conv", taken)]
    assert names == ["dense", "cuda", "winograd"]
    names = [choice.backend for choice in cuda.candidates("masked_conv", strided)]
    assert names == ["dense", "cuda"]
    with backends.backend("winograd", "cuda"):
        assert cuda.choose("masked_conv", taken).backend == "winograd"
        assert cuda.choose("masked_conv", strided).backend == "dense"
        result = cuda.run("masked_conv", *taken)
    expected = torch.ops.metasparse_winograd.masked_conv(*taken)
    assert torch.equal(result, expected)


@pytest.mark.usefixtures("without_triton")
def test_where_triton_is_missing_the_model_prefers_winograd_to_a_library_call_per_task():
    case = Case(2, 3, 5, 7, 9, 11)
    x, weight, mask, *rest = call_of(case)
    shared = (x, *(t[:1].expand(t.shape) for t in (weight, mask, rest[0])), *rest[1:])
    assert cuda.choose("masked_conv", (x, weight, mask, *rest)).backend == "winograd"
    assert cuda.choose("masked_conv", shared).backend == "dense"
