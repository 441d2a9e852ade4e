"""Where the tests of the Triton kernels run: on a GPU if there is one, else in the interpreter."""

import functools
import importlib.util
from types import SimpleNamespace

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@functools.cache
def problem() -> str | None:
    """Why kernels cannot run here, or None."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    import triton
    import triton.language as tl

    @triton.jit
    def count(OUT, n):
        total = 0
        for _ in range(tl.load(OUT) + n):
            total += 1
        tl.store(OUT, total)

    try:
        count[(1,)](torch.zeros(1, dtype=torch.int32, device=DEVICE), 3)
    except Exception as error:  # whatever a combination of versions comes up with
        return f"Triton {triton.__version__} does not run a loop here: {error}"
    return None


#: The marks of a module of such tests.
runs_kernels = [pytest.mark.skipif(problem() is not None, reason=str(problem()))]
if DEVICE == "cuda":
    runs_kernels.append(pytest.mark.cuda)


@pytest.fixture
def bfloat16_products(monkeypatch):
    """Lets the interpreter multiply bfloat16 numbers, which it keeps as their bits, by value."""
    if DEVICE == "cuda":
        return
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    multiply, dot = InterpreterBuilder.create_fmul, InterpreterBuilder.create_dot

    def wide(builder, x):
        return builder.create_fp_ext(x, tl.float32) if x.dtype == tl.bfloat16 else x

    def create_fmul(self, a, b):
        product = multiply(self, wide(self, a), wide(self, b))
        return self.create_fp_trunc(product, tl.bfloat16) if a.dtype == tl.bfloat16 else product

    def create_dot(self, a, b, *rest):
        return dot(self, wide(self, a), wide(self, b), *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_fmul", create_fmul)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


@pytest.fixture
def tf32_products(monkeypatch):
    """Lets the interpreter round to TF32 as the kernels ask, and multiply as tensor cores do."""
    if DEVICE == "cuda":
        return
    import numpy as np
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    from metasparse_ext.triton.masked_conv.loads import ADD_HALF

    dot = InterpreterBuilder.create_dot

    def create_inline_asm(self, asm, constraints, values, types, is_pure, pack):
        assert asm == ADD_HALF.value
        bits = values[0].data.view(np.int32)
        finite = np.isfinite(values[0].data)
        rounded = (bits + np.int32(0x1000) * finite.astype(np.int32)).view(np.float32)
        return SimpleNamespace(get_result=lambda _: TensorHandle(rounded, values[0].dtype))

    def truncated(x):
        return TensorHandle((x.data.view(np.int32) & -0x2000).view(np.float32), x.dtype)

    def create_dot(self, a, b, d, precision, *rest):
        return dot(self, truncated(a), truncated(b), d, precision, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_inline_asm", create_inline_asm, raising=False)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


def on_device(*values):
    """Tensors moved to where the kernels run; anything else as it is."""
    return [v.to(DEVICE) if isinstance(v, torch.Tensor) else v for v in values]


def assert_close(actual, expected, bound: float) -> None:
    """The largest error, relative to the largest expected number, is within the bound."""
    actual, expected = actual.double(), expected.double()
    assert actual.shape == expected.shape
    assert torch.isfinite(actual).all()
    scale = max(float(expected.abs().max()), 1e-6) if expected.numel() else 1.0
    error = float((actual - expected).abs().max()) / scale if expected.numel() else 0.0
    assert error <= bound, f"error {error:.1e} of the largest number, more than {bound:.0e}"
