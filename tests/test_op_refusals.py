"""Bad operands are refused alike by the kernels and by the fakes that only infer shapes."""

import re

import pytest
import torch
from support.op_calls import all_calls, composed_calls
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import metasparse_ext as ms
from metasparse_ext import _library
from metasparse_ext.implicit import cg, softmax_head

pytestmark = pytest.mark.skipif(_library.problem is not None, reason="no compiled library")

CALLS = {**all_calls(), **composed_calls()}
GRAD, IMAGES, WEIGHT, MASK = CALLS["masked_conv_backward"][:4]
# Ops that say something, and those that take tensors of any kind apart and put them together.
OTHERS = {"build_info", "cpu_isa", "explain_conv", "conv_backend", "set_conv_backend"}
OTHERS |= {"unflatten_tasks", "flatten_tasks"}

CHANGES = {
    "dimensions": lambda t: t[None],
    "size": lambda t: torch.cat([t, t]) if t.dim() else t.expand(2),
    "dtype": lambda t: t.to(torch.int32),
    "narrow": lambda t: t.half() if t.is_floating_point() else t.to(torch.int32),
}


def tensors(name: str) -> list[int]:
    return [i for i, arg in enumerate(CALLS[name]) if isinstance(arg, Tensor)]


def run(name: str, args: tuple) -> Exception | None:
    """What a call raises; the state that cg_step moves is left alone."""
    args = [a.clone() if isinstance(a, Tensor) and not a.is_meta else a for a in args]
    try:
        getattr(torch.ops.metasparse, name)(*args)
    except (ValueError, TypeError) as error:
        return error
    return None


def run_fake(name: str, args: tuple) -> Exception | None:
    with FakeTensorMode() as mode:
        fakes = tuple(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args)
        return run(name, fakes)


def test_every_op_is_called_here():
    every = {
        name for name in torch._C._dispatch_get_all_op_names() if name.startswith("metasparse::")
    }
    left = {name.removeprefix("metasparse::") for name in every} - CALLS.keys() - OTHERS
    assert not left, f"add calls to tests/support/op_calls.py: {left}"


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", CALLS)
def test_a_fake_refuses_what_the_kernel_refuses(name, change):
    """Each operand in turn is of another rank, size or dtype."""
    refused = 0
    for position in tensors(name):
        args = list(CALLS[name])
        args[position] = CHANGES[change](args[position])
        real, fake = run(name, args), run_fake(name, args)
        assert type(real) is type(fake), f"operand {position}: {real} but {fake}"
        assert str(real) == str(fake)
        refused += real is not None
    # every op but gates, which take any shape and floating dtype, has operands to compare
    assert refused > 0 or (name in ("binary_mask", "score_gate") and change != "dtype")


@pytest.mark.parametrize("name", [name for name in CALLS if len(tensors(name)) > 1])
def test_operands_lie_on_one_device(name):
    """Each operand in turn is on meta, and so is each fake one."""
    for position in tensors(name):
        args = list(CALLS[name])
        args[position] = args[position].to("meta")
        for error in (run(name, args), run_fake(name, args)):
            assert isinstance(error, ValueError), f"operand {position}: {error}"
            assert re.search(r"expected \w+ on (cpu|meta) like \w+, got (cpu|meta)", str(error))


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (
            lambda: ms.norm_act_pool(torch.randn(3, 4, 6, 6), torch.empty(4, device="meta")),
            "weight",
        ),
        (
            lambda: ms.norm_act_pool(torch.randn(3, 4, 6, 6), bias=torch.empty(4, device="meta")),
            "bias",
        ),
        (
            lambda: ms.topk_mask(
                [torch.randn(4), torch.empty(4, device="meta")], 0.5, scope="task"
            ),
            r"scores\[1\]",
        ),
        (
            lambda: softmax_head(
                torch.randn(2, 4, 6),
                torch.zeros(2, 4, dtype=torch.int64, device="meta"),
                torch.randn(3, 6),
                lam=1.0,
            ),
            "labels",
        ),
        (
            lambda: cg(lambda v: v, torch.ones(1, 2), iterations=1, x0=torch.ones(1, 2).to("meta")),
            "x0",
        ),
    ],
    ids=["weight", "bias", "scores", "labels", "x0"],
)
def test_functions_name_the_argument_on_another_device(call, argument):
    with pytest.raises(ValueError, match=f"expected {argument} to be on cpu like .*, got meta"):
        call()


def test_symbolic_sizes_are_checked_too():
    """Under dynamic shapes a call that does not fit is refused while it is traced."""

    def bad(x, weight):
        return ms.masked_conv2d(x, weight, None)

    compiled = torch.compile(bad, dynamic=True, backend="eager")
    with pytest.raises(Exception, match=r"weight.size\(2\) to be I"):
        compiled(torch.randn(2, 3, 6, 6), torch.randn(4, 5, 3, 3))
    good = compiled(torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3))
    assert good.shape == (2, 4, 4, 4)


PACKED = {
    "sparse": lambda t: t.to_sparse(),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "nested": lambda t: torch.nested.nested_tensor([t, t]),
}


@pytest.mark.parametrize("kind", PACKED)
def test_packed_tensors_are_refused_in_words(kind):
    pack = PACKED[kind]
    image, kernel = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3)
    for call in (
        lambda: ms.masked_conv2d(pack(image), kernel, None),
        lambda: ms.masked_conv2d(image, pack(kernel), None),
        lambda: ms.masked_conv2d(image, kernel, pack(torch.ones(4, 3))),
        lambda: ms.norm_act_pool(pack(image)),
        lambda: ms.norm_act_pool(image, pack(torch.ones(3))),
        lambda: ms.topk_mask(pack(kernel), 0.5),
        lambda: ms.binary_mask(pack(kernel)),
        lambda: cg(lambda v: v, pack(torch.ones(2, 3)), iterations=1),
        lambda: softmax_head(
            pack(torch.randn(2, 4, 3)), torch.zeros(2, 4).long(), torch.ones(2, 3), lam=1.0
        ),
    ):
        with pytest.raises(TypeError, match=f"dense|float.*{kind}|float.*qint8"):
            call()
