"""Compiles the Triton kernels for GPUs that are not there.

A launcher is called with tensors of the meta device, and the launch it would make is compiled
instead of run: exactly what a GPU would be given. ``python -m tools.compile_triton`` does so for
every kernel, architecture and variant that matters, and writes registers, spills and shared memory
to benchmarks/results/triton-compile.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from metasparse_ext.triton import cg, masked_conv, norm_act_pool, softmax_head, topk_mask

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "triton-compile.json"
ARCHITECTURES = (80, 90)
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}


class Compiled(NamedTuple):
    """What became of one launch."""

    kernel: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    multiplies_by: str
    warps: int


# ---- one launch ----------------------------------------------------------------------------------


def _signature(kernel: JITFunction, args: tuple, options: dict) -> tuple[dict, dict, dict]:
    """Types, constants and alignments of a launch, as Triton derives them from its arguments."""
    values = dict(zip(kernel.arg_names, args, strict=False)) | options
    types, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            types[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            types[parameter.name], aligned = _POINTERS[value.dtype], True
        else:
            types[parameter.name] = "i32" if abs(value) < 2**31 else "i64"
            aligned = value % 16 == 0
        if aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return types, constants, attributes


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of stack and local memory, of a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [_CUOBJDUMP, "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    found = {name: int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL")}
    return found["REG"], found["STACK"] + found["LOCAL"]


def _multiplies_by(ptx: str) -> str:
    for instruction in ("wgmma.mma", "mma.sync"):
        if instruction in ptx:
            return instruction
    return "fma" if "fma.rn" in ptx else "none"


def compile_launch(kernel: JITFunction, args: tuple, options: dict, arch: int) -> Compiled:
    """Compiles one launch of a kernel for an architecture such as 90."""
    compiler = {name: options.pop(name) for name in ("num_warps", "num_stages") if name in options}
    types, constants, attributes = _signature(kernel, args, options)
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=attributes)
    built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=compiler)
    registers, spilled = _resources(built.asm["cubin"])
    return Compiled(
        kernel.fn.__name__,
        registers,
        spilled,
        built.metadata.shared,
        _multiplies_by(built.asm["ptx"]),
        built.metadata.num_warps,
    )


@contextlib.contextmanager
def compiling(arch: int) -> Iterator[list[Compiled]]:
    """Within it, launches are compiled for ``arch`` and not run; the list gathers them."""
    compiled: list[Compiled] = []

    def instead(kernel, *args, grid, warmup, **options):
        compiled.append(compile_launch(kernel, args, options, arch))

    run, JITFunction.run = JITFunction.run, instead
    try:
        yield compiled
    finally:
        JITFunction.run = run


# ---- the launches that matter --------------------------------------------------------------------


_LAUNCHERS = {"forward": "masked_conv", "forward pair": "masked_conv_pair"}


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def conv_variant(
    op: str,
    *,
    channels: tuple[int, int] = (64, 64),
    side: int = 32,
    stride: int = 2,
    dtype: torch.dtype = torch.float32,
    masked: bool = True,
    **options,
) -> Callable[[], object]:
    """A call of one op of the masked convolution family: 4 tasks, 25 samples, 3x3 kernels."""
    inputs, outputs = channels
    x = empty(4, 25, inputs, side, side, dtype=dtype)
    weight = empty(4, outputs, inputs, 3, 3, dtype=dtype)
    mask = empty(4, outputs, inputs, dtype=dtype) if masked else None
    small = (side - 1) // stride + 1
    grad = empty(4, 25, outputs, small, small, dtype=dtype)
    window = ((stride, stride), (1, 1))
    bias = grad[:, 0, :, 0, 0]
    operands = {
        "forward": (x, weight, mask, bias),
        "input grad": (grad, weight, mask, (side, side)),
        "weight grad": (grad, x, mask, (3, 3)),
        "mask grad": (grad, x, weight),
        "forward pair": (x, weight, mask, x, weight, mask, bias),
        "input grad pair": (grad, weight, mask, grad, weight, mask, (side, side)),
        "weight grad pair": (grad, x, grad, x, mask, (3, 3)),
    }
    launch = getattr(masked_conv, _LAUNCHERS.get(op, "masked_conv_" + op.replace(" ", "_")))
    return lambda: launch(*operands[op], *window, **options)


def norm_variant(
    op: str, dtype: torch.dtype = torch.float32, pool: bool = True, first: bool = True
) -> Callable[[], object]:
    """A call of one op of the norm_act_pool family."""
    x, y = empty(4, 25, 64, 42, 42, dtype=dtype), empty(4, 25, 64, 21, 21, dtype=dtype)
    y = y if pool else x
    c = empty(4, 64, dtype=dtype)
    point = (x, c, c, c, y.to(torch.uint8), 1e-5, pool, first)
    calls = {
        "forward": lambda: norm_act_pool.norm_act_pool(x, c, c, 1e-5, True, pool, first),
        "backward": lambda: norm_act_pool.norm_act_pool_backward(y, *point),
        "tangent": lambda: norm_act_pool.norm_act_pool_tangent(x, c, c, *point),
        "double backward": lambda: norm_act_pool.norm_act_pool_double_backward(x, c, c, y, *point),
    }
    return calls[op]


def other_variant(op: str, dtype: torch.dtype = torch.float32) -> Callable[[], object]:
    """A call of one of the ops on vectors and heads."""
    v, scalars = empty(4, 112_000, dtype=dtype), empty(4, dtype=torch.float64)
    counts = empty(4, dtype=torch.int64)
    features, head = empty(4, 25, 1600, dtype=dtype), empty(4, 5, 1600, dtype=dtype)
    labels, lam = empty(4, 25, dtype=torch.int64), empty(4, dtype=dtype)
    calls = {
        "cg_step": lambda: cg.cg_step(v, v, v, v, v, *[scalars] * 3, counts, counts),
        "topk_mask": lambda: topk_mask.topk_mask(v, counts),
        "softmax_head": lambda: softmax_head.softmax_head(features, labels, head, lam, 1e-9, 50),
        "softmax_head_grad": lambda: softmax_head.softmax_head_grad(
            head, head, features, labels, head, lam
        ),
    }
    return calls[op]


CONV_OPS = ("forward", "input grad", "weight grad", "mask grad")
PAIRS = ("forward pair", "input grad pair", "weight grad pair")
NORM_OPS = ("forward", "backward", "tangent", "double backward")
OTHER_OPS = ("cg_step", "topk_mask", "softmax_head", "softmax_head_grad")


def variants() -> dict[str, Callable[[], object]]:
    """Every variant of the sweep, by a name that says what is special about it."""
    tile = masked_conv.Tile
    large = {
        "channels": (128, 128),
        "side": 42,
        "stride": 1,
        "precision": "tf32",
        "tile": tile(128, 64, 32, warps=8),
    }
    calls = {}
    for op in CONV_OPS:
        for precision in ("tf32", "tf32x3", "ieee"):
            calls[f"{op}, {precision}"] = conv_variant(op, precision=precision)
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            name = f"{op}, {str(dtype).removeprefix('torch.')}"
            side = 32 if dtype == torch.float64 else 64
            calls[name] = conv_variant(op, dtype=dtype, tile=tile(side, side, 32))
        calls[f"{op}, one channel in"] = conv_variant(op, channels=(1, 64), side=28)
        calls[f"{op}, 128 channels, stride 1"] = conv_variant(op, **large)
        calls[f"{op}, small tile"] = conv_variant(op, side=4, tile=tile(32, 32, 32))
    for op in ("forward", "input grad"):
        calls[f"{op}, skipping"] = conv_variant(op, tile=tile(skip=True))
    for op in PAIRS:
        calls[f"{op}, tf32"] = conv_variant(op, precision="tf32")
        calls[f"{op}, tf32x3"] = conv_variant(op, tile=tile(warps=8))
        calls[f"{op}, 128 channels, stride 1"] = conv_variant(op, **large)
    for op in CONV_OPS[:3]:
        calls[f"{op}, unmasked"] = conv_variant(op, masked=False)
    for op in NORM_OPS:
        for dtype in (torch.float32, torch.float64):
            for pool in (False, True):
                for first in (False, True):
                    name = f"norm {op}, {str(dtype).removeprefix('torch.')}"
                    name += (", pool" if pool else "") + ("" if first else ", gate first")
                    calls[name] = norm_variant(op, dtype, pool, first)
    for op in OTHER_OPS:
        for dtype in (torch.float32, torch.float64):
            calls[f"{op}, {str(dtype).removeprefix('torch.')}"] = other_variant(op, dtype)
    return calls


def sweep(architectures: tuple[int, ...]) -> list[dict]:
    """Compiles every variant for every architecture; one row a launch."""
    rows = []
    for arch in architectures:
        for name, call in variants().items():
            with compiling(arch) as compiled:
                call()
            for launch in compiled:
                rows.append({"arch": f"sm_{arch}", "variant": name, **launch._asdict()})
                print(*rows[-1].values(), sep=" | ", file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = sweep(tuple(options.arch))
    record = {"triton": triton.__version__, "torch": torch.__version__, "launches": rows}
    options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
