"""The CUDA key's choice of a backend, by table and forced, run here on CPU tensors."""

import inspect
import json
import re
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from support.host import NothingOnTheHost
from support.op_calls import (
    WINDOW,
    all_calls,
    composed_calls,
    conv_calls,
    depthwise_calls,
    norm_calls,
    other_calls,
)
from support.triton_kernels import DEVICE, assert_close, on_device, runs_kernels

from metasparse_ext.ops import backends, cuda, cuda_features, cuda_table, premultiplied

#: Modules of ops that CUDA C++ leaves to others: each is one launch in Triton.
ONE_LAUNCH = (
    "masked_weight",
    "norm_act_pool",
    "score_gate",
    "task_cross_entropy",
    "task_linear",
)
#: Ops that are a library's products of matrices, or its convolutions.
PRODUCTS = ("task_linear", "task_linear_pair", *depthwise_calls())

BACKENDS = ["dense", pytest.param("triton", marks=runs_kernels)]


@pytest.fixture(autouse=True)
def unforced(monkeypatch):
    """As without the environment variable and CUDA C++, and with the table of the package."""
    monkeypatch.setattr(backends, "_cuda", backends.AUTOMATIC)
    # Other tests may have loaded the kernels' emulation into this process.
    monkeypatch.setattr(cuda.torch.ops, "metasparse_cuda", SimpleNamespace(), raising=False)
    cuda.problem.cache_clear()
    cuda_table.table.cache_clear()
    cuda_table.rows_for.cache_clear()


def test_every_op_of_the_key_is_called_here():
    differ = all_calls().keys() ^ cuda.OPS.keys()
    assert not differ, f"of all_calls() in tests/support/op_calls.py or of OPS alone: {differ}"


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
        chosen = cuda.choose(op, tuple(args)).backend
        assert chosen == (name if cuda.OPS[op].module or name != "triton" else "dense")
        actual = cuda.run(op, *args)
    if actual is None:  # in place
        count = {"cg_step": 3, "add_budget_gradient": 1}[op]
        actual, expected = args[:count], expected_args[:count]
    elif op == "softmax_head":  # the way to the minimiser is a backend's own
        actual, expected = actual[:1], expected[:1]
    elif isinstance(actual, torch.Tensor):
        actual, expected = [actual], [expected]
    for mine, theirs in zip(actual, expected, strict=True):
        assert_close(mine.cpu(), theirs, 1e-9)


@pytest.mark.parametrize("op", conv_calls())
def test_products_with_masks_beside_convolutions_of_pytorch(op):
    """One launch each, unless PyTorch's own operators are asked for."""
    kernels = pytest.importorskip("metasparse_ext.triton.masked_weight")
    if cuda.problem("triton") or not hasattr(kernels.masked_weight_kernel, "fn"):
        pytest.skip("no Triton")
    args = list(conv_calls()[op])
    masks = [a for a in args if isinstance(a, torch.Tensor) and a.dim() == 3]
    launched = 0
    for mask in masks:
        mask[:, 0] = 0
    with backends.backend("dense", "cuda"):
        assert cuda._multiplier(op, tuple(args)) is None
        expected = cuda.run(op, *on_device(*args))
    ours = cuda._multiplier(op, tuple(on_device(*args)))

    def multiply(weight, mask):
        nonlocal launched
        launched += 1
        return ours(weight, mask)

    own = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
    for weight, mask in premultiplied._WEIGHTS.get(op, ()):
        if own[mask] is not None:
            own[weight][own[mask] == 0] = float("nan")
    actual = cuda._run_dense(op, tuple(on_device(*own)), multiply)
    assert launched == len(masks)
    assert_close(actual.cpu(), expected.cpu(), 1e-12)


@runs_kernels[0]
def test_masks_beside_an_empty_convolution_of_pytorch():
    """Nothing is launched for it."""
    x, weight, mask, bias, *window = conv_calls()["masked_conv"]
    args = (*on_device(x[:, :0], weight, mask, bias), *window)
    assert cuda._multiplier("masked_conv", args) is None
    assert cuda.run("masked_conv", *args).shape[:3] == (len(x), 0, weight.shape[1])
    for axis in (
        (x[:0], weight[:0], mask[:0], bias[:0]),
        (x, weight[:, :0], mask[:, :0], bias[:, :0]),
    ):
        assert cuda.choose("masked_conv", (*axis, *window)).backend == "dense"


@pytest.mark.parametrize("name", BACKENDS)
def test_nothing_waits_for_the_device(name):
    calls = all_calls()
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
    with pytest.raises(ValueError, match="'automatic', 'dense', 'triton', 'cuda', got 'x'"):
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
    args = other_calls()["topk_mask"]
    with backends.backend("triton", "cuda"):
        assert cuda.choose("topk_mask", args).backend == "triton"
        assert cuda.choose("softmax_head", other_calls()["softmax_head"]).backend != "triton"


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_a_forced_backend_that_is_not_there_says_so(name, monkeypatch):
    monkeypatch.setattr(cuda, "problem", lambda *_: "it was left at home")
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


# ---- cards ---------------------------------------------------------------------------------------

# Compute capability -> shared memory of a block, KiB; what NVIDIA's tables say.
CARDS = {
    (7, 5): 64,
    (8, 0): 163,
    (8, 6): 99,
    (8, 9): 99,
    (9, 0): 227,
    (10, 0): 227,
    (12, 0): 99,
}
by_card = pytest.mark.parametrize("capability", CARDS, ids="{0[0]}.{0[1]}".format)


class Compiled:
    """The namespace of a library with CUDA C++ that takes every call it has an op for."""

    def __getattr__(self, name):
        if name == "norm_act_pool_refusal" or name.startswith("norm_act_pool_"):
            raise AttributeError(name)
        return lambda *args: ""


def there(monkeypatch, *, capability=None, triton=True, archs=None):
    """As on a GPU of this capability, with Triton, and with CUDA C++ compiled for ``archs``."""
    found = lambda name: object() if triton else None  # noqa: E731
    monkeypatch.setattr(cuda.importlib.util, "find_spec", found)
    if capability is not None:
        card = cuda.Card(capability, CARDS[capability] << 10)
        monkeypatch.setattr(cuda, "card_of", lambda tensor: card)
    if archs is not None:
        monkeypatch.setattr(cuda.torch.ops, "metasparse_cuda", Compiled())
        record = {"cuda": "13.0", "cuda_archs": archs}
        monkeypatch.setattr(cuda._library, "build_record", lambda: record)
    cuda.problem.cache_clear()


@pytest.fixture(autouse=True)
def forget_problems():
    yield
    cuda.problem.cache_clear()


def chosen(channels=32):
    """The backend of every op, convolutions of so many channels in float32."""
    convs = conv_calls(torch.float32, channels=channels)
    wide = {op: tuple(_widened(a, channels) for a in args) for op, args in convs.items()}
    calls = {**wide, **norm_calls(torch.float32), **other_calls(torch.float32)}
    return {op: cuda.choose(op, args).backend for op, args in calls.items()}


def _widened(value, channels):
    """Four output channels become as many as the input has."""
    if not isinstance(value, torch.Tensor):
        return value
    for axis in (1, 2):
        if value.dim() > axis and value.shape[axis] == 4:
            value = value.repeat_interleave(channels // 4, axis)
    return value


@runs_kernels[0]
@by_card
def test_with_triton_alone(capability, monkeypatch):
    there(monkeypatch, capability=capability, archs=())
    monkeypatch.setattr(cuda, "_compiled_problem", lambda capability: "no nvcc")
    backend = chosen()
    ours = "triton" if capability >= (8, 0) else "dense"
    theirs = {op for op in backend if cuda.OPS[op].module is None}
    assert {op for op in theirs if "head" in op} == {"softmax_head", "softmax_head_grad"}
    assert {backend[op] for op in theirs} == {"dense"}  # PyTorch, to any order and captured
    assert {name for op, name in backend.items() if op not in theirs} == {ours}
    assert {n for op, n in chosen(channels=64).items() if "conv" in op} == {"dense"}


@by_card
def test_with_cuda_alone(capability, monkeypatch):
    there(monkeypatch, capability=capability, triton=False, archs=["8.0", "9.0+PTX"])
    backend = chosen()
    ours = "cuda" if capability >= (8, 0) else "dense"
    for op, name in backend.items():
        dense = cuda.OPS[op].module in ONE_LAUNCH or op in PRODUCTS
        assert name == ("dense" if dense else ours), op


@runs_kernels[0]
@by_card
def test_with_both(capability, monkeypatch):
    there(monkeypatch, capability=capability, archs=["8.0", "9.0+PTX"])
    backend = chosen()
    old = capability < (8, 0)
    for op, name in backend.items():
        ours = "triton" if "conv" in op or cuda.OPS[op].module in ONE_LAUNCH else "cuda"
        assert name == ("dense" if old or op in PRODUCTS else ours), op


@by_card
def test_with_neither(capability, monkeypatch):
    there(monkeypatch, capability=capability, triton=False)
    assert set(chosen().values()) == {"dense"}


@pytest.mark.parametrize(
    ("archs", "capability", "sentence"),
    [
        (["9.0"], (12, 0), "were compiled for 9.0, and this GPU is 12.0"),
        (["9.0a"], (10, 0), "were compiled for 9.0a, and this GPU is 10.0"),
        (["8.0", "9.0+PTX"], (7, 5), "were compiled for 8.0, 9.0+PTX, and this GPU is 7.5"),
        (["9.0+PTX"], (12, 0), None),
        (["8.0"], (8, 9), None),
    ],
)
def test_code_that_does_not_run_on_the_card_is_refused(archs, capability, sentence, monkeypatch):
    there(monkeypatch, capability=capability, triton=False, archs=archs)
    args = other_calls()["topk_mask"]
    found = cuda.refusal("topk_mask", "cuda", args)
    assert found is None if sentence is None else found.endswith(sentence)
    if sentence is not None:
        with backends.backend("cuda", "cuda"), pytest.raises(ValueError, match=re.escape(sentence)):
            cuda.choose("topk_mask", args)


@runs_kernels[0]
@pytest.mark.parametrize(("capability", "fits"), [((8, 9), False), ((8, 0), True)])
def test_a_tile_beyond_the_shared_memory_of_the_card_is_refused(capability, fits, monkeypatch):
    there(monkeypatch, capability=capability)
    args = tuple(_widened(a, 32) for a in conv_calls(torch.float32, channels=32)["masked_conv"])
    large = {"rows": 128, "pixels": 64, "reduction": 32}
    found = cuda.refusal("masked_conv", "triton", args, large)
    assert (found is None) is fits
    if not fits:
        assert found == "a block needs 147456 bytes of shared memory, and the GPU has 101376"


@runs_kernels[0]
def test_every_cut_of_the_table_fits_the_smallest_card(monkeypatch):
    """A row whose cut fits no card in use would never hold."""
    there(monkeypatch, capability=(8, 9))
    for dtype in (torch.float32, torch.float64):
        for op, args in conv_calls(dtype, channels=32).items():
            wide = tuple(_widened(a, 32) for a in args)
            rows = [r for r in cuda_table.read().rows if op in r.ops and r.backend == "triton"]
            cuts = [r.options for r in rows if (dtype == torch.float64) == ("dtype" in r.when)]
            fitting = [cuda.refusal(op, "triton", wide, cut) is None for cut in cuts]
            assert fitting[-1], (op, dtype)


def test_why_a_launch_cannot_serve(monkeypatch):
    there(monkeypatch)
    v = torch.ones(2, 9)
    assert cuda.refusal("topk_mask", "triton", (v.half(), v)).endswith("got torch.float16")
    assert cuda.refusal("softmax_head", "triton", other_calls()["softmax_head"]) == (
        "Triton has no softmax_head"
    )
    many = torch.ones(1).expand(70_000, 9)
    assert "up to 65535 tasks, got 70000" in cuda.refusal("topk_mask", "triton", (many, v))
    x = torch.ones(1).expand(1, 2**16, 1, 2**9, 2**9)
    weight = torch.ones(1, 4, 1, 3, 3)
    call = (x, weight, None, None, (1, 1), (1, 1))
    assert "2^31 pixels" in cuda.refusal("masked_conv", "triton", call)


# ---- devices without kernels ---------------------------------------------------------------------


def test_every_op_has_a_kernel_on_every_device():
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    for op in (*cuda.OPS, *composed_calls()):
        assert has(f"metasparse::{op}", "CompositeExplicitAutograd"), op


@pytest.mark.parametrize("op", cuda.OPS)
def test_elsewhere_pytorch_serves_with_one_warning(op):
    cuda._warn_elsewhere.cache_clear()
    args = all_calls()[op]
    own = tuple(a.clone() if isinstance(a, torch.Tensor) else a for a in args)
    with pytest.warns(RuntimeWarning, match="no kernels for cpu: PyTorch's own operators"):
        actual = cuda.run_elsewhere(op, *own)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        cuda.run_elsewhere(op, *(a.clone() if isinstance(a, torch.Tensor) else a for a in args))
    if op not in ("cg_step", "softmax_head"):
        expected = getattr(torch.ops.metasparse, op)(*args)
        torch.testing.assert_close(actual, expected)


def test_rocm_is_told_apart_from_cuda(monkeypatch):
    cuda._warn_elsewhere.cache_clear()
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(cuda, "_run_dense", lambda op, args: "dense")

    class OnGpu:
        is_cuda = True

    with pytest.warns(RuntimeWarning, match="no kernels for ROCm"):
        assert cuda.run_elsewhere("topk_mask", OnGpu()) == "dense"


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
        if entry.module is None:
            continue
        launch, module = cuda._launcher(op)
        known = inspect.signature(launch).parameters
        if entry.module == "masked_conv":
            known = module.Tile._fields
        assert set(entry.grid) <= set(known)


def test_without_triton_pytorch_serves_every_call(monkeypatch):
    there(monkeypatch, triton=False)
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
    assert cuda_features.precision(x) == "float32"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert cuda_features.precision(x) == "tf32"
    assert cuda_features.precision(x.double()) == "float64"


def test_measurements_come_before_the_model(tmp_path, monkeypatch):
    path = tmp_path / "table.json"
    path.write_text(cuda_table.PATH.read_text())
    args = conv_calls()["masked_conv"]
    features = cuda.OPS["masked_conv"].features(*args)
    modelled = cuda_table.read(path).rows
    for options in ({"rows": 64}, {"rows": 128}):  # the second replaces the first
        row = cuda_table.measured("masked_conv", features, "triton", options)
        cuda_table.write([row], "a GPU", path, path)
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
