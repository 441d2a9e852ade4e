"""Compiles the Triton kernels for GPUs that are not there.

A launcher is called with tensors of the meta device, and the launch it would make is compiled
instead of run: exactly what a GPU would be given. ``python -m tools.compile_triton`` does so for
every kernel, architecture and variant that matters, and writes registers, spills and shared memory
to benchmarks/results/triton-compile.json. That takes a few minutes of one core, and seconds
where Triton's own cache has the kernels already.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
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

from metasparse_ext.ops import cuda
from metasparse_ext.triton import masked_conv
from tools.sources import digest
from tools.triton_calls import GLUE, NORM_OPS, OTHER_OPS, empty, norm_variant, other_variant

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "triton-compile.json"
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
    """What became of one launch.

    Attributes:
        kernel: Its name.
        registers, spilled_bytes: Of a thread.
        shared_bytes, warps: Of a program.
        multiplies_by: The instruction of its matrix products, or else "fma" or "none".
        sums_in: The type that this instruction sums in; "none" where there is none.
        arithmetic: The types that its other additions and multiplications are in.
        loop_instructions: Of the innermost loops with matrix products on tensor cores, the
            instructions beside the products that four warps issue for 64 x 64 x 32 of a product;
            of the worst loop, None without one.
    """

    kernel: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    multiplies_by: str
    sums_in: str
    arithmetic: tuple[str, ...]
    warps: int
    loop_instructions: float | None


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


def _cuobjdump(option: str, cubin: bytes) -> str:
    """What cuobjdump says of machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [_CUOBJDUMP, option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of stack and local memory, of a thread."""
    usage = _cuobjdump("--dump-resource-usage", cubin)
    found = {name: int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL")}
    return found["REG"], found["STACK"] + found["LOCAL"]


_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)(\S*)(.*?);")


def loop_instructions(sass: str) -> float | None:
    """See :class:`Compiled`: the worst of the loops that multiply matrices, in a listing."""
    lines = [(int(m[1], 16), *m.groups()[1:]) for m in _INSTRUCTION.finditer(sass)]
    worst = None
    for end, name, _, operands in lines:
        target = re.search(r"0x([0-9a-f]+)", operands) if name == "BRA" else None
        if target is None or int(target[1], 16) >= end:
            continue
        body = [line for line in lines if int(target[1], 16) <= line[0] <= end]
        work = [_work_of(name, modifiers) for _, name, modifiers, _ in body]
        if any(work):
            beside = len(body) - sum(w > 0 for w in work)
            worst = max(worst or 0, beside * 64 * 64 * 32 / (4 * sum(work)))
    return worst and round(worst, 1)


def _work_of(name: str, modifiers: str) -> int:
    """Multiplications of one instruction, by a warp's share; 0 unless it is of tensor cores."""
    if name == "HGMMA" and (shape := re.match(r"\.(\d+)x(\d+)x(\d+)", modifiers)):
        return math.prod(map(int, shape.groups())) // 4
    if name == "HMMA" and (shape := re.match(r"\.(16)(8)(\d+)", modifiers)):
        return math.prod(map(int, shape.groups()))
    return 0


def _multiplies_by(ptx: str) -> str:
    for instruction in ("wgmma.mma", "mma.sync"):
        if instruction in ptx:
            return instruction
    return "fma" if "fma.rn" in ptx else "none"


def _sums_in(ptx: str) -> str:
    """The first type of an instruction such as mma.sync.aligned.m16n8k16.row.col.f32.bf16..."""
    found = re.findall(r"\.m\d+n\d+k\d+(?:\.row\.col)?\.(\w+)\.", ptx)
    return " ".join(sorted(set(found))) or "none"


def _arithmetic(ptx: str) -> tuple[str, ...]:
    found = re.findall(r"\b(?:add|sub|mul|fma)(?:\.\w+)*?\.(b?f(?:16|32|64)(?:x2)?)\b", ptx)
    return tuple(sorted({kind.removesuffix("x2") for kind in found}))


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
        _sums_in(built.asm["ptx"]),
        _arithmetic(built.asm["ptx"]),
        built.metadata.num_warps,
        loop_instructions(_cuobjdump("--dump-sass", built.asm["cubin"])),
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


def conv_call(
    op: str,
    *,
    channels: tuple[int, int] = (64, 64),
    side: int = 32,
    stride: int = 2,
    dtype: torch.dtype = torch.float32,
    masked: bool = True,
) -> tuple[str, tuple]:
    """One op of the masked convolution family: 4 tasks, 25 samples, 3x3 kernels."""
    inputs, outputs = channels
    x = empty(4, 25, inputs, side, side, dtype=dtype)
    weight = empty(4, outputs, inputs, 3, 3, dtype=dtype)
    mask = empty(4, outputs, inputs, dtype=dtype) if masked else None
    small = (side - 1) // stride + 1
    grad = empty(4, 25, outputs, small, small, dtype=dtype)
    bias = grad[:, 0, :, 0, 0]
    operands = {
        "forward": (x, weight, mask, bias),
        "input grad": (grad, weight, mask, (side, side)),
        "weight grad": (grad, x, mask, (3, 3)),
        "mask grad": (grad, x, weight),
        "backward": (grad, x, weight, mask, True),
        "forward pair": (x, weight, mask, x, weight, mask, bias),
        "input grad pair": (grad, weight, mask, grad, weight, mask, (side, side)),
        "weight grad pair": (grad, x, grad, x, mask, (3, 3)),
    }
    name = _LAUNCHERS.get(op, "masked_conv_" + op.replace(" ", "_"))
    return name, (*operands[op], (stride, stride), (1, 1))


def conv_variant(
    op: str,
    *,
    tile: masked_conv.Tile | None = None,
    precision: str = "tf32x3",
    **sizes,
) -> Callable[[], object]:
    """A call of one op of the family in a cut of our own; the launcher's if ``tile`` is None."""
    name, args = conv_call(op, **sizes)
    options = {} if tile is None else {"tile": tile}
    if op == "backward" and tile is not None:
        options["weight_tile"] = usual_tile("weight grad", precision)
    return lambda: getattr(masked_conv, name)(*args, precision=precision, **options)


def chosen_variants() -> dict[str, Callable[[], object]]:
    """The convolutions of small and large networks, in each cut that the table gives them."""
    calls = {}
    switch = torch.backends.cudnn.conv
    kept = switch.fp32_precision
    for setting, precision in (("tf32", "tf32"), ("ieee", "tf32x3")):
        switch.fp32_precision = setting
        for op, channels, side in itertools.product(
            (*CONV_OPS[:3], "forward pair"), ((32, 32), (48, 48)), (5, 14, 42)
        ):
            sizes = {"channels": channels, "side": side, "stride": 1}
            choice = cuda.choose(*conv_call(op, **sizes))
            if choice.backend == "triton":
                tile = masked_conv.Tile(**choice.options)
                cut = f"{tile.rows} x {tile.pixels} x {tile.reduction}, {tile.warps} warps"
                call = conv_variant(op, tile=tile, precision=precision, **sizes)
                calls[f"{op}, chosen, {precision}, {cut}"] = call
    switch.fp32_precision = kept
    return calls


CONV_OPS = ("forward", "input grad", "weight grad", "mask grad")
PAIRS = ("forward pair", "input grad pair", "weight grad pair")
NARROW = (torch.bfloat16, torch.float16)


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def usual_tile(op: str, precision: str = "tf32") -> masked_conv.Tile:
    """A tile that fills tensor cores, without spills."""
    if "grad" in op and "input" not in op:
        return masked_conv.Tile(32, 64 if precision == "tf32" else 32, 64)
    if "pair" in op and precision != "tf32":
        return masked_conv.Tile(32, 64, 32)
    return masked_conv.Tile(64, 64, 32)


def variants() -> dict[str, Callable[[], object]]:
    """Every variant of the sweep, by a name that says what is special about it."""
    calls = {}
    near = {"side": 14, "stride": 1}
    for op in (*CONV_OPS, *PAIRS, "backward"):
        tile = usual_tile(op)
        calls[f"{op}, tf32"] = conv_variant(op, precision="tf32", tile=tile, **near)
    for op in ("forward", "weight grad", "forward pair", "backward"):
        calls[f"{op}, tf32x3"] = conv_variant(op, tile=usual_tile(op, "tf32x3"), **near)
    for op in ("forward", "weight grad"):
        calls[f"{op}, one channel in"] = conv_variant(op, channels=(1, 64), side=28)
    small = masked_conv.Tile(32, 32, 32)
    calls["forward, float64"] = conv_variant("forward", dtype=torch.float64, tile=small)
    calls["input grad, stride 2"] = conv_variant(
        "input grad", precision="tf32", tile=usual_tile("input grad")
    )
    for op, dtype in (("forward", NARROW[0]), ("weight grad", NARROW[1])):
        calls[f"{op}, {_named(dtype)}"] = conv_variant(op, dtype=dtype, tile=usual_tile(op))
    for op in NORM_OPS:
        for dtype in (torch.float32, torch.bfloat16):
            calls[f"norm {op}, {_named(dtype)}, pool"] = norm_variant(op, dtype)
    name = "norm double backward, float32, gate first"
    calls[name] = norm_variant("double backward", pool=False, first=False, side=10)
    for op in OTHER_OPS:
        calls[f"{op}, float32"] = other_variant(op)
    for op, dtype in itertools.product(GLUE, (torch.float32, torch.bfloat16)):
        calls[f"{op}, {_named(dtype)}"] = other_variant(op, dtype)
    return calls | chosen_variants()


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
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    about = {
        "triton": triton.__version__,
        "torch": torch.__version__,
        "sources": digest(ROOT / "metasparse_ext" / "triton", "*.py"),
    }
    options.out.write_text(f'{json.dumps(about)[:-1]}, "launches": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
