"""Exported programs in PyTorch's own operators, and as ONNX where its packages are installed."""

import pytest
import torch
from support.op_calls import all_calls, composed_calls
from torch import nn

import metasparse_ext as ms
from metasparse_ext import reference
from metasparse_ext.nn import Conv4, MaskedConv2d, ScoreMask, TopKMask, sparsify


def convolutions(masker):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, stride=2, padding=1))
    return sparsify(net, masker)


MODELS = {
    "fixed": lambda: MaskedConv2d(3, 8, 3, padding=1, mask=torch.rand(8, 3) < 0.5),
    "scores": lambda: convolutions(lambda weight: ScoreMask.like(weight, -1, 1)),
    "weights": lambda: convolutions(lambda weight: TopKMask(0.5)),
    "kernels": lambda: convolutions(lambda weight: TopKMask(0.3, "kernel")),
    "conv4": lambda: Conv4(3, 8, 4, 5, blocks=2),
    "max-pool": lambda: Conv4(3, 8, 4, 5, blocks=2, strided=False, order="act_pool_norm"),
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


def exported(model):
    """A program for any number of images, in PyTorch's own operators."""
    images = torch.randn(3, 3, 8, 8)
    count = torch.export.Dim("count", min=2, max=64)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: count},))
    assert any("metasparse" in str(node.target) for node in program.graph.nodes)
    return program.run_decompositions(ms.decompositions())


def test_a_decomposed_program_computes_the_same(model):
    program, images = exported(model), torch.randn(5, 3, 8, 8)
    assert not any("metasparse" in str(node.target) for node in program.graph.nodes)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), model(images), rtol=1e-5, atol=1e-5)


def test_onnx_computes_the_same(model):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    program, images = exported(model), torch.randn(5, 3, 8, 8)
    onnx = torch.onnx.export(program, dynamo=True, verbose=False).model_proto
    session = runtime.InferenceSession(onnx.SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model(images), rtol=1e-5, atol=1e-5)


def test_onnx_takes_the_module(model):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    images = torch.randn(5, 3, 8, 8)
    count = {0: torch.export.Dim("count", min=2, max=64)}
    onnx = torch.onnx.export(
        model, (images[:3],), dynamo=True, dynamic_shapes=(count,), verbose=False
    ).model_proto
    session = runtime.InferenceSession(onnx.SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model(images), rtol=1e-5, atol=1e-5)


def test_symbolic_sizes_are_inferred_by_the_fake_kernels(monkeypatch):
    """And not by a decomposition, which returns other results than the op."""
    op = torch.ops.metasparse.norm_act_pool.default
    monkeypatch.setitem(torch._decomp.decomposition_table, op, None)
    model, images = Conv4(3, 8, 4, 5, blocks=2).eval(), torch.randn(3, 3, 8, 8)
    count = {0: torch.export.Dim("count", min=2, max=64)}
    program = torch.export.export(model, (images,), dynamic_shapes=(count,))
    assert any(node.target is op for node in program.graph.nodes)


# Ops that no forward pass of a network calls.
OF_DERIVATIVES = ("_grad", "_backward", "_tangent", "_pair", "_gradient")
OF_LEARNERS = {"cg_step", "softmax_head", "task_cross_entropy"}


def test_every_op_of_a_forward_pass_is_there():
    names = {op.name().removeprefix("metasparse::") for op in ms.decompositions()}
    forward = {
        name
        for name in (*all_calls(), *composed_calls())
        if not name.endswith(OF_DERIVATIVES) and name not in OF_LEARNERS
    }
    assert names == forward


@pytest.mark.parametrize(
    "name",
    [
        *("masked_conv", "depthwise_conv", "norm_act_pool", "binary_mask"),
        *("topk_mask", "score_gate", "task_linear"),
    ],
)
def test_each_is_its_op(name):
    op = getattr(torch.ops.metasparse, name)
    scores = torch.randint(-2, 3, (4, 9)).double()
    scores[0, 0], scores[1, 2], scores[2] = torch.inf, -0.0, 0.0
    calls = {
        **all_calls(),
        "binary_mask": (scores, 0.1),
        "topk_mask": (scores, torch.tensor([0, 3, 4, 9])),
    }
    found, expected = ms.decompositions()[op.default](*calls[name]), op(*calls[name])
    if name == "norm_act_pool":
        found, expected = found[0], expected[0]
    exact = name.endswith("mask")
    torch.testing.assert_close(found, expected, **({"rtol": 0, "atol": 0} if exact else {}))


def test_nan_has_no_rank():
    scores = torch.tensor([[1.0, torch.nan], [1.0, 2.0]])
    k = torch.tensor([1, 1])
    found = ms.decompositions()[torch.ops.metasparse.topk_mask.default](scores, k)
    torch.testing.assert_close(found, reference.topk_mask(scores, k), equal_nan=True)
