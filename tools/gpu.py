"""Everything that wants a GPU, in one go: ``make gpu``.

Builds the library with CUDA against the torch that is installed (nothing is downloaded), runs the
tests that are marked ``cuda``, the CUDA C++ kernels under compute-sanitizer, and the benchmark.
Every stage has a time of its own and is stopped when that is over, so none costs the others their
results. The folder of results gets a log a stage, the raw numbers and their table (from
benchmarks/gpu), and gpu-summary.json, which is written anew after every stage.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SECONDS = {"build": 220, "tests": 160, "sanitizer": 60, "benchmark": 180}
TOTAL = 540

# How a test file says that some of its tests want a GPU: by mark, by fixture, by what they share.
_FOR_A_GPU = re.compile(
    r"mark\.cuda|CUDA\b|runs_kernels|usefixtures\([^)]*\"device\"|def test_\w+\([^)]*\bdevice\b"
)

OPS = ("masked_conv", "norm_act_pool", "topk_mask", "binary_mask", "cg", "softmax_head")
# The ops that are tested once more with a backend forced.
FORCED = {"triton": OPS, "cuda": OPS, "dense": OPS}
# What the backends in CUDA C++ are run on under compute-sanitizer, which is slow.
SANITIZED = {
    "cuda": (
        "tests/test_masked_conv.py::test_value_and_gradients_equal_the_definition",
        "tests/test_topk_mask.py::test_every_k",
        "tests/test_cg.py::test_step_is_its_reference",
        "tests/test_softmax_head.py::test_op_is_its_reference",
    ),
}


@dataclass
class Outcome:
    """How a stage or one of its parts ended: "passed", "failed", "stopped" or "skipped"."""

    status: str
    seconds: float
    note: str = ""
    parts: dict[str, Outcome] = field(default_factory=dict)


def run(
    command: Sequence[str], log: Path, seconds: float, environment: Mapping[str, str] | None = None
) -> Outcome:
    """Runs a command with its output in a file, for so long at most, then ends all it started."""
    started = time.monotonic()
    if seconds < 1:
        return Outcome("skipped", 0.0, "no time was left")
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
            status = "passed" if code == 0 else "failed"
            note = "" if code == 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status, note = "stopped", f"after its {seconds:.0f} s"
    return Outcome(status, round(time.monotonic() - started, 1), note)


def build(out: Path, seconds: float) -> Outcome:
    """The library in place, for the GPU that is there."""
    environment = {"METASPARSE_FORCE_CUDA": "1", "MAX_JOBS": str(os.cpu_count() or 1)}
    if "TORCH_CUDA_ARCH_LIST" not in os.environ and (arch := capability()):
        environment["TORCH_CUDA_ARCH_LIST"] = arch
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return run(command, out / "gpu-build.log", seconds, environment)


def capability() -> str | None:
    """The compute capability of the first GPU, for example "9.0"."""
    code = "import torch; print('{}.{}'.format(*torch.cuda.get_device_capability()))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    return found.stdout.strip() or None


def tests(out: Path, seconds: float) -> Outcome:
    """A process a file, several at a time: an illegal access ruins one of them alone.

    The files of the ops run once more with each backend forced.
    """
    started, jobs = time.monotonic(), list(test_jobs())
    logs = out / "gpu-tests"
    logs.mkdir(exist_ok=True)

    def one(job: tuple[str, str, str]) -> tuple[str, Outcome]:
        name, file, backend = job
        command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "-p", "no:cacheprovider"]
        environment = {"METASPARSE_CUDA_BACKEND": backend, "OMP_NUM_THREADS": "1"}
        left = seconds - (time.monotonic() - started)
        outcome = run([*command, file], logs / f"{name}.log", left, environment)
        if outcome.note == "exit code 5":  # pytest found no test so marked
            outcome = Outcome("skipped", outcome.seconds, "has no test for a GPU")
        return name, outcome

    with ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2)) as pool:
        parts = dict(pool.map(one, jobs))
    with (out / "gpu-tests.log").open("w") as log:
        for path in sorted(logs.glob("*.log")):
            log.write(f"==== {path.stem}\n{path.read_text(errors='replace')}\n")
    shutil.rmtree(logs)
    return combined(parts, time.monotonic() - started)


def test_jobs() -> Iterator[tuple[str, str, str]]:
    """Name, file and backend of every test process, the most telling ones first."""
    files = {
        path.stem.removeprefix("test_"): str(path)
        for path in ROOT.glob("tests/test_*.py")
        if _FOR_A_GPU.search(path.read_text(encoding="utf-8"))
    }
    first = ["capture", "training_capture", *OPS]
    for name in [*first, *sorted(set(files) - set(first))]:
        yield name, files[name], "automatic"
    for backend, ops in FORCED.items():
        for name in ops:
            yield f"{name}-{backend}", files[name], backend


def combined(parts: dict[str, Outcome], seconds: float) -> Outcome:
    """A stage of several processes: as bad as the worst of them."""
    found = {outcome.status for outcome in parts.values()}
    status = next((s for s in ("failed", "stopped", "passed") if s in found), "skipped")
    note = ", ".join(name for name, o in parts.items() if o.status in ("failed", "stopped"))
    return Outcome(status, round(seconds, 1), note, parts)


def sanitizer(out: Path, seconds: float) -> Outcome:
    """The CUDA C++ kernels with every access to memory checked, where the tool is installed."""
    places = [shutil.which("compute-sanitizer"), "/usr/local/cuda/bin/compute-sanitizer"]
    tool = next((place for place in places if place and Path(place).is_file()), None)
    if tool is None:
        return Outcome("skipped", 0.0, "compute-sanitizer is not installed")
    command = [tool, "--tool", "memcheck", "--error-exitcode", "1", sys.executable, "-m", "pytest"]
    command += ["-m", "cuda", "-x", "-q", "-p", "no:cacheprovider"]
    started, parts = time.monotonic(), {}
    for backend, names in SANITIZED.items():
        # Without PyTorch's cache an allocation ends where its tensor does.
        environment = {"METASPARSE_CUDA_BACKEND": backend, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        left = seconds - (time.monotonic() - started)
        log = out / f"gpu-sanitizer-{backend}.log"
        parts[backend] = run([*command, *names], log, left, environment)
    return combined(parts, time.monotonic() - started)


def benchmark(out: Path, seconds: float) -> Outcome:
    """The benchmark, which is told to be done before it would be stopped."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(out)]
    command += ["--seconds", str(int(seconds - 15))]
    return run(command, out / "gpu-benchmark.log", seconds)


STAGES = {"build": build, "tests": tests, "sanitizer": sanitizer, "benchmark": benchmark}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--only", choices=tuple(STAGES), action="append", help="repeatable")
    parser.add_argument("--seconds", type=int, default=TOTAL, help="for all stages together")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + options.seconds
    summary: dict[str, Outcome] = {}
    for name, stage in STAGES.items():
        if options.only and name not in options.only:
            continue
        left = min(SECONDS[name], deadline - time.monotonic())
        if summary.get("build", Outcome("passed", 0)).status != "passed":
            summary[name] = Outcome("skipped", 0.0, "there is no library")
        else:
            summary[name] = stage(out, left)
        record = {key: asdict(outcome) for key, outcome in summary.items()}
        (out / "gpu-summary.json").write_text(json.dumps(record, indent=1) + "\n")
        outcome = summary[name]
        print(f"{name:10} {outcome.status:8} {outcome.seconds:6.1f} s  {outcome.note}", flush=True)
    sys.exit(any(o.status in ("failed", "stopped") for o in summary.values()))


if __name__ == "__main__":
    main()
