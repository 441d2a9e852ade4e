"""The CUDA key's choice of a backend, by table and forced, run here on CPU tensors."""

import inspect
import json
import subprocess
import sys

import pytest
import torch
from support.host import NothingOnTheHost
from support.op_calls import WINDOW, all_calls, conv_calls, other_calls
from support.triton_kernels import DEVICE, assert_close, on_device, runs_kernels

from metasparse_ext.ops import backends, cuda, cuda_table

BACKENDS = ["dense", pytest.param("triton", marks=runs_kernels)]


@pytest.fixture(autouse=True)
def unforced(monkeypatch):
    """As without the environment variable, and with the table of the package."""
    monkeypatch.setattr(backends, "_cuda", backends.AUTOMATIC)
    cuda_table.table.cache_clear()
    cuda_table.rows_for.cache_clear()


def test_every_op_of_the_key_is_called_here():
    assert all_calls().keys() == cuda.OPS.keys()


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("op", cuda.OPS)
def test_forced_backends_agree_with_the_definition(op, name, monkeypatch):
    """The op on the CPU is the definition's: other tests hold it to that."""
    if name == "triton" and cuda.OPS[op].module == "masked_conv":
        monkeypatch.setattr("metasparse_ext.triton.masked_conv.weight_grad.PROGRAMS", 4)
    expected_args = all_calls()[op]
    args = on_device(*(a.clone() if isinstance(a, torch.Tensor) else a for a in expected_args))
    expected = getattr(torch.ops.metasparse, op)(*expected_args)
    with backends.backend(name, "cuda"):
        assert cuda.choose(op, tuple(args)).backend == name
        actual = cuda.run(op, *args)
    if op == "cg_step":  # in place
        actual, expected = args[:3], expected_args[:3]
    elif op == "softmax_head":  # the way to the minimiser is a backend's own
        actual, expected = actual[:1], expected[:1]
    elif isinstance(actual, torch.Tensor):
        actual, expected = [actual], [expected]
    for mine, theirs in zip(actual, expected, strict=True):
        assert_close(mine.cpu(), theirs, 1e-9)


@pytest.mark.parametrize("name", BACKENDS)
def test_nothing_waits_for_the_device(name):
    calls = all_calls()
    if name == "dense" and DEVICE == "cpu":
        del calls["softmax_head"], calls["softmax_head_grad"]  # one_hot looks at labels on the CPU
    for op in calls:
        args = on_device(*calls[op])
        with backends.backend(name, "cuda"):
            choice = cuda.choose(op, tuple(args))
        with NothingOnTheHost(DEVICE):
            cuda.run_choice(op, choice, tuple(args))


@pytest.mark.skipif(DEVICE == "cuda", reason="the key is there")
@pytest.mark.parametrize("name", BACKENDS)
def test_autograd_lies_above_the_key(name):
    """Under the C++ Nodes of another device's key, a chosen backend is differentiable twice."""
    calls = conv_calls()["masked_conv"]
    inputs = [calls[0][:1, :1, :1], calls[1][:1, :2, :1], calls[2][:1, :2, :1]]
    inputs = [t.clone().requires_grad_() for t in inputs]
    with (
        torch.library._scoped_library("metasparse", "IMPL") as library,
        backends.backend(name, "cuda"),
    ):
        for op in conv_calls():
            library.impl(op, lambda *a, op=op: cuda.run(op, *a), "CPU", allow_override=True)
        call = lambda x, w, m: torch.ops.metasparse.masked_conv(x, w, m, None, *WINDOW)  # noqa: E731
        assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


def test_who_has_the_cuda_key():
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    for op in cuda.OPS:
        assert has(f"metasparse::{op}", "CUDA") == (torch.version.cuda is not None)


# ---- the switch ----------------------------------------------------------------------------------


def test_one_switch_serves_both_devices():
    assert backends.get_backend("cpu") == backends.get_backend("cuda") == "automatic"
    with backends.backend("direct", "cpu"), backends.backend("dense", "cuda"):
        assert (backends.get_backend("cpu"), backends.get_backend("cuda")) == ("direct", "dense")
        assert torch.ops.metasparse.conv_backend() == "direct"
    assert backends.get_backend("cpu") == backends.get_backend("cuda") == "automatic"


def test_unknown_names_are_refused():
    with pytest.raises(
        ValueError,
        match="'automatic', 'dense', 'triton', 'cuda', 'winograd', got 'x'",
    ):
        backends.set_backend("x", "cuda")
    with pytest.raises(ValueError, match="device to be one of 'cpu', 'cuda', got 'tpu'"):
        backends.get_backend("tpu")


def test_an_unknown_name_in_the_environment_is_refused_with_its_variable(monkeypatch):
    monkeypatch.setattr(backends, "_cuda", None)
    monkeypatch.setenv("METASPARSE_CUDA_BACKEND", "x")
    for _ in range(2):
        with pytest.raises(ValueError, match="METASPARSE_CUDA_BACKEND to be one of 'auto"):
            backends.get_backend("cuda")
    monkeypatch.setenv("METASPARSE_CUDA_BACKEND", "dense")
    assert backends.get_backend("cuda") == "dense"


@runs_kernels[0]
def test_a_call_that_the_forced_backend_cannot_serve_goes_by_the_table():
    args = other_calls()["softmax_head"]
    many = (args[0].repeat(1, 20, 1), args[1].repeat(1, 20), *args[2:])
    with backends.backend("triton", "cuda"):
        assert cuda.choose("softmax_head", args).backend == "triton"
        assert cuda.choose("softmax_head", many).backend != "triton"


@pytest.mark.parametrize("name", ["triton", "cuda", "winograd"])
def test_a_forced_backend_that_is_not_there_says_so(name, monkeypatch):
    monkeypatch.setattr(cuda, "problem", {name: "it was left at home"}.get)
    args = other_calls()["topk_mask"]
    with (
        backends.backend(name, "cuda"),
        pytest.raises(ValueError, match=f"topk_mask: .* {name!r} .* it was left at home"),
    ):
        cuda.choose("topk_mask", args)


def test_empty_calls_go_to_pytorch():
    x, weight, mask, *rest = conv_calls()["masked_conv"]
    empty = (x[:, :0], weight, mask, *rest)
    for name in ("automatic", "triton"):
        with backends.backend(name, "cuda"):
            assert cuda.choose("masked_conv", empty).backend == "dense"
    assert cuda.run("masked_conv", *empty).shape == (2, 0, 4, 3, 2)


def test_arguments_are_checked():
    x, weight, *rest = conv_calls()["masked_conv"]
    with pytest.raises(ValueError, match="masked_conv: expected weight"):
        cuda.run("masked_conv", x, weight[:, :, :2], *rest)


# ---- the table -----------------------------------------------------------------------------------


def test_the_table_is_sound():
    table = cuda_table.read()
    assert (table.status == "modelled") == (table.device is None)
    for row in table.rows:
        assert set(row.ops) <= cuda.OPS.keys()
        assert row.backend in backends.CUDA_BACKENDS
        for op in row.ops:
            assert row.options.keys() <= cuda.OPS[op].grid.keys()
            features = cuda.OPS[op].features(*all_calls()[op])
            assert set(row.when) <= features.keys()


@runs_kernels[0]
def test_launchers_take_what_the_grids_offer():
    for op, entry in cuda.OPS.items():
        launch, module = cuda._launcher(op)
        known = inspect.signature(launch).parameters
        if entry.module == "masked_conv":
            known = module.Tile._fields
        assert set(entry.grid) <= set(known)


def test_without_triton_pytorch_serves_every_call(monkeypatch):
    monkeypatch.setattr(cuda, "problem", {"triton": "Triton is not installed"}.get)
    for op, args in all_calls().items():
        assert cuda.choose(op, args).backend != "triton"
        assert all(choice.backend != "triton" for choice in cuda.candidates(op, args))


def test_features_of_a_convolution():
    x, weight, mask, bias, *window = conv_calls(torch.float32)["masked_conv"]
    features = cuda.OPS["masked_conv"].features(x, weight, mask, bias, *window)
    assert (features["rows"], features["columns"], features["depth"]) == (4, 2 * 2 * 3 * 2, 27)
    assert features["calls"] == 2
    shared = [t[:1].expand(t.shape) for t in (weight, mask, bias)]
    assert cuda.OPS["masked_conv"].features(x, *shared, *window)["calls"] == 1


def test_precision_follows_pytorchs_switch(monkeypatch):
    x = torch.zeros(1)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert cuda.precision(x) == "float32"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert cuda.precision(x) == "tf32"
    assert cuda.precision(x.double()) == "float64"


def test_measurements_come_before_the_model(tmp_path, monkeypatch):
    path = tmp_path / "table.json"
    path.write_text(cuda_table.PATH.read_text())
    args = conv_calls()["masked_conv"]
    features = cuda.OPS["masked_conv"].features(*args)
    modelled = cuda_table.read(path).rows
    for options in ({"rows": 64}, {"rows": 128}):  # the second replaces the first
        row = cuda_table.measured("masked_conv", features, "triton", options)
        cuda_table.write([row], "a GPU", path)
    table = cuda_table.read(path)
    assert (table.status, table.device) == ("measured", "a GPU")
    assert table.rows[0].options == {"rows": 128}
    assert table.rows[1:] == modelled
    assert table.rows[0].holds("masked_conv", features)
    assert table.rows[0].holds("masked_conv", features | {"columns": features["columns"] + 1})
    assert not table.rows[0].holds("masked_conv", features | {"columns": 2 * features["columns"]})
    assert not table.rows[0].holds("masked_conv", features | {"dtype": "float32"})
    assert json.loads(path.read_text())["rows"][0]["measured"]


def test_candidates_cover_the_backends():
    choices = cuda.candidates("masked_conv", conv_calls()["masked_conv"])
    assert choices[0] == cuda.Choice("dense", {})
    if cuda.problem("triton") is None:
        launched = [c.options for c in choices if c.backend == "triton"]
        assert len(launched) == len({tuple(sorted(o.items())) for o in launched}) > 10


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import metasparse_ext as ms
from metasparse_ext.ops import cuda
print(ms.info()["triton"])
print(cuda.problem("triton"))
"""


def test_the_package_imports_without_triton():
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines() == ["no (not installed)", "Triton is not installed"]
