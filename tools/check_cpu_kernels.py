"""Compiles the CPU kernels without torch and runs them over odd and drawn shapes.

    python tools/check_cpu_kernels.py [--sanitize address|thread|none ...] [--target aarch64]
                                      [--op NAME ...] [--draws N] [--seed S] [--build FOLDER]
                                      [--out TABLE]

Every result is compared with a naive sum, and all operands lie between inaccessible pages. Needs a
C++ compiler and no torch, of which the kernels know nothing. Every instruction set this CPU has is
run; another target's portable kernels run in an emulator of it. Exit status 0 means: no invalid
access, no undefined behaviour or data race, and every result right; 2, that a tool is missing.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from build_backend import isa  # noqa: E402

CPU = ROOT / "csrc" / "cpu"
CHECKS = ROOT / "tools" / "check_kernels"
STAND_IN = CHECKS / "torch_stand_in"  # in place of torch's threads
COMMON = ["-std=c++20", "-g1", "-Wall", "-Wextra", "-fopenmp-simd", *isa.MATH_FLAGS]
# gcc 12 takes the undefined lanes of its own AVX-512 intrinsics for uninitialised variables
COMMON += ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]
SANITIZE = {
    "address": ["-O1", "-fsanitize=address,undefined"],
    "thread": ["-O1", "-fsanitize=thread"],
    "none": ["-O3"],
}
SANITIZE_ALL = ["-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
# What takes four fifths of the time to compile the kernels, for little: accesses are checked by a
# call each, and null and the ends of objects by AddressSanitizer and the pages alone.
KERNEL_SANITIZE = {
    "address": [
        *("--param", "asan-instrumentation-with-call-threshold=0"),
        *("-fno-sanitize-address-use-after-scope", "-fno-sanitize=null,object-size"),
    ]
}
# The norm's many loops, once each and not wherever one is used: another attribute in this one's
# place. With the convolutions' few and long ones that takes longer.
NORM_SANITIZE = {"address": ["-Dalways_inline=unused"]}


class Op(NamedTuple):
    """Drawn cases, what an idle machine of two cores does in about a minute; and the sources."""

    draws: int
    kernels: str
    drivers: str | None = None


OPS = {
    "norm_act_pool": Op(400, "norm/*.cpp"),
    "conv": Op(20, "conv/*.cpp", "conv/*.cpp"),
    "threads": Op(6, "conv/*.cpp", "conv/*.cpp"),
    "depthwise_conv": Op(400, "depthwise_conv.cpp"),
    "topk_mask": Op(60, "topk_mask.cpp"),
    "cg": Op(60, "cg.cpp"),
    "row_products": Op(150, "row_products.cpp"),
    "softmax_head": Op(150, "softmax_head.cpp"),
}


class Target(NamedTuple):
    """How programs of a machine are compiled and run, and what Debian calls that."""

    machine: str | None
    compiler: list[str]
    link: list[str]
    emulator: list[str]
    packages: str


NATIVE = Target(None, shlex.split(os.environ.get("CXX", "c++")), [], [], "g++")
TARGETS = {
    "native": NATIVE,
    "aarch64": Target(
        "aarch64",
        ["aarch64-linux-gnu-g++"],
        ["-static"],  # the emulator then needs no libraries of the target
        ["qemu-aarch64"],
        "g++-aarch64-linux-gnu qemu-user",
    ),
}


def missing(target: Target) -> str | None:
    """What to install for a target, in a line; None where all is there."""
    tools = [target.compiler[0], *target.emulator[:1]]
    lacking = [tool for tool in tools if shutil.which(tool) is None]
    if not lacking:
        return None
    names = " and ".join(lacking)
    return f"not installed: {names} (on Debian: apt-get install {target.packages})"


def sources(ops: Iterable[str]) -> tuple[list[Path], list[Path]]:
    """What the check of some ops is made of: files compiled once, and kernels."""
    once = {CHECKS / "main.cpp", *STAND_IN.glob("*.cpp"), *CPU.glob("runtime/*.cpp")}
    kernels = {}
    for op in ops:
        once.add(CHECKS / f"{op}.cpp")
        if OPS[op].drivers:  # threads calls the cases of conv
            once |= {CHECKS / "conv.cpp", *CPU.glob(OPS[op].drivers)}
        kernels |= dict.fromkeys(sorted((CPU / "kernels").glob(OPS[op].kernels)))
    return sorted(once), list(kernels)


def compile_all(target: Target, sanitize: str, ops: Iterable[str], build: Path) -> Path:
    """Compiles and links the program for a target; its path."""
    flags = [*COMMON, *SANITIZE[sanitize], *(SANITIZE_ALL if sanitize != "none" else [])]
    once, kernels = sources(ops)
    jobs = []
    for name in isa.compiled_for(target.machine):
        options = [*isa.flags(name), *KERNEL_SANITIZE.get(sanitize, [])]
        norm = [*options, *NORM_SANITIZE.get(sanitize, [])]
        jobs += [(k, norm if k.parent.name == "norm" else options) for k in kernels]
    jobs += [(source, []) for source in once]

    def run(job: tuple[int, tuple[Path, list[str]]]) -> Path:
        number, (source, options) = job
        result = build / f"{number}_{source.stem}.o"
        command = [*target.compiler, *flags, *options, f"-I{STAND_IN}", "-c", source, "-o", result]
        subprocess.run(command, check=True)
        return result

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(run, enumerate(jobs)))
    program = build / f"check_kernels_{sanitize}"
    command = [*target.compiler, *flags, *objects, "-pthread", *target.link, "-o", program]
    subprocess.run(command, check=True)
    return program


class Outcome(NamedTuple):
    """What came of an op on an instruction set; of a program that ended early, no cases."""

    isa: str
    op: str
    cases: int
    failures: int
    status: int


def check(target: Target, program: Path, ops: dict[str, int], seed: int) -> Iterator[Outcome]:
    """Runs the ops on every instruction set, side by side, and shows what they print."""
    names = isa.supported() if target.machine is None else isa.compiled_for(target.machine)

    def run(job: tuple[str, str]) -> subprocess.CompletedProcess:
        op, name = job
        return subprocess.run(
            [*target.emulator, program, op, str(ops[op]), str(seed)],
            env={**os.environ, "METASPARSE_CPU_ISA": name},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [(op, name) for op in ops for name in names]
        for (op, name), result in zip(jobs, pool.map(run, jobs), strict=True):
            print(result.stdout, end="", flush=True)
            if result.returncode != 0:
                print(f"{name} {op}: failed, exit status {result.returncode}", flush=True)
            found = re.search(r"(\d+) cases, (\d+) failures", result.stdout)
            cases, failures = map(int, found.groups()) if found else (0, 1)
            yield Outcome(name, op, cases, failures, result.returncode)


def table(target: Target, outcomes: dict[str, list[Outcome]]) -> str:
    """Markdown: the compiler, and what each sanitizer found."""
    command = [*target.compiler, "--version"]
    version = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    header = ["sanitizer", "op", "instruction set", "cases", "failures"]
    rows = [
        [sanitize, found.op, found.isa, f"{found.cases:,}", str(found.failures)]
        for sanitize, all_found in outcomes.items()
        for found in all_found
    ]
    lines = [header, ["---", "---", "---", "---:", "---:"], *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"Compiled by {version.splitlines()[0]}.\n\n{text}\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sanitize", choices=SANITIZE, action="append", help="default: address and undefined"
    )
    parser.add_argument("--target", choices=TARGETS, default="native", help="default: native")
    parser.add_argument("--op", choices=OPS, action="append", help="default: every op")
    parser.add_argument("--draws", type=int, help="drawn cases an op; default: by the op")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn cases")
    parser.add_argument("--build", type=Path, help="keep what is compiled in this folder")
    parser.add_argument("--out", type=Path, help="where to write a table, as Markdown")
    given = parser.parse_args()
    if given.draws is not None and given.draws < 0:
        parser.error(f"argument --draws: expected at least 0, got {given.draws}")
    if given.sanitize is None:
        given.sanitize = ["address" if given.target == "native" else "none"]
    return given


def main() -> int:
    given = arguments()
    target = TARGETS[given.target]
    problem = missing(target)
    if problem is not None:
        print(problem, file=sys.stderr)
        return 2
    outcomes = {sanitize: run(target, sanitize, given) for sanitize in given.sanitize}
    if given.out is not None:
        given.out.write_text(table(target, outcomes))
    return int(any(found.status for all_found in outcomes.values() for found in all_found))


def run(target: Target, sanitize: str, given: argparse.Namespace) -> list[Outcome]:
    """Compiles the program and runs it."""
    # Several callers are of interest to ThreadSanitizer alone, and one caller to the others.
    ops = given.op or [op for op in OPS if (op == "threads") == (sanitize == "thread")]
    draws = {op: OPS[op].draws if given.draws is None else given.draws for op in ops}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        build = given.build or Path(scratch)
        build.mkdir(parents=True, exist_ok=True)
        program = compile_all(target, sanitize, ops, build)
        compiled = time.monotonic()
        print(f"{sanitize}: compiled in {compiled - start:.0f} s", flush=True)
        outcomes = list(check(target, program, draws, given.seed))
    verdict = "failed" if any(found.status for found in outcomes) else "passed"
    print(f"{sanitize}: {verdict} in {time.monotonic() - compiled:.0f} s", flush=True)
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
