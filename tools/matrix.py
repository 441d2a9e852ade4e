"""Builds the package and runs a few tests with every Python and torch that can be had here.

    python tools/matrix.py [--python PATH ...] [--torch VERSION ...] [--folder FOLDER]
                           [--out TABLE]

Each pair gets a virtual environment and a copy of the sources; a Python that has a torch already is
used as it is. Then the first pair is built once more by a compiler without OpenMP, and once without
``os.uname``, as on Windows. Only CPU builds of torch are taken: others bring gigabytes of CUDA.
Prints a table; what could not be had is in it. The exit status is 1 if anything failed.
"""

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent

PYTHONS = [f"python3.{minor}" for minor in range(11, 15)]
TORCHES = ["2.11.0", "2.12.1", "2.13.0", "2.14.1", "2.15.0"]
TESTS = ["test_build", "test_topk_mask", "test_masks_hold", "test_checkpoint", "test_own_learner"]
NEEDED = ["setuptools>=77", "ninja", "pytest>=8", "hypothesis>=6.100", "scipy>=1.11"]
# What is said of a command that failed: the last lines that it printed.
LINES = 20
# What pip says of a release that it finds nowhere; the second, where a constraint names it too.
NOT_SERVED = ("No matching distribution", "ResolutionImpossible")


class Row(NamedTuple):
    """A pair, how it was built, and what came of it."""

    python: str
    torch: str
    build: str
    result: str
    failed: bool = False


class StepFailed(Exception):
    """A command that failed: which, and what it printed last."""


def run(command: list, step: str, **options) -> str:
    """What a command prints."""
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **options,
    )
    if done.returncode != 0:
        last = "\n".join(done.stdout.splitlines()[-LINES:])
        raise StepFailed(f"{step} failed, exit status {done.returncode}:\n{last}")
    return done.stdout


def requirement(torch: str) -> str:
    """What pip is asked for: on Linux on x86-64 CPU builds have a name of their own."""
    cpu = "+cpu" if (sys.platform, platform.machine()) == ("linux", "x86_64") else ""
    return f"torch=={torch}{cpu}"


def torch_of(python: str) -> str | None:
    """The version of the torch that a Python has, if it has one."""
    code = "import torch; print(torch.__version__)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def version(python: str) -> str:
    return run([python, "-c", "import platform; print(platform.python_version())"], python).strip()


def copied(folder: Path) -> Path:
    """A copy of the sources, without what was built."""
    left = shutil.ignore_patterns(".*", "build", "runs", "_C*", "_build.json", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=left)
    shutil.copy(ROOT / ".clang-format", folder)
    return folder


def environment(folder: Path, **changes: str) -> dict[str, str]:
    """Variables of the commands that build a copy and test it."""
    return {**os.environ, "PYTHONPATH": str(folder), **changes}


class Pair(NamedTuple):
    """A Python with a torch, to build with."""

    python: str
    version: str
    torch: str


def made(python: str, torch: str, folder: Path) -> Pair:
    """A virtual environment with this torch, if there is one."""
    wheels = folder.with_name(f"{folder.name}-wheels")
    download = [python, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", wheels]
    run([*download, requirement(torch)], "finding torch")
    run([python, "-m", "venv", folder], "making the environment")
    own = str(folder / "bin" / "python")
    install = [own, "-m", "pip", "install", "--quiet"]
    run([*install, requirement(torch)], "installing torch")
    run([*install, *NEEDED, "numpy", "pillow", "safetensors", "matplotlib"], "installing the rest")
    return Pair(own, version(own), torch_of(own) or "none")


def pairs(pythons: list[str], torches: list[str], folder: Path) -> Iterator[Pair | Row]:
    """What can be had, and rows of what cannot."""
    for python in pythons:
        path = shutil.which(python)
        if path is None or _is_shim_without_python(path):
            yield Row(python, "", "", "no such Python here")
            continue
        found = torch_of(path)
        if found is not None:
            yield Pair(path, version(path), found)
            continue
        for torch in torches:
            name = f"{Path(python).name}-torch-{torch}"
            try:
                yield made(path, torch, folder / name)
            except StepFailed as error:
                print(f"{name}: {error}", flush=True)
                if any(words in str(error) for words in NOT_SERVED):
                    yield Row(version(path), torch, "", "no CPU build of this torch here")
                else:
                    yield Row(version(path), torch, "", str(error).partition(",")[0], failed=True)


def _is_shim_without_python(path: str) -> bool:
    """Whether a version manager offers the name and not the Python."""
    done = subprocess.run([path, "--version"], capture_output=True, check=False)
    return done.returncode != 0


def without_openmp(folder: Path) -> dict[str, str]:
    """A compiler that stops at -fopenmp."""
    compiler = shlex.join(shlex.split(os.environ.get("CXX", "c++")))
    script = folder / "without-openmp"
    script.write_text(
        "#!/bin/sh\n"
        'for a; do [ "$a" = -fopenmp ] && { echo "no OpenMP here" >&2; exit 1; }; done\n'
        f'exec {compiler} "$@"\n'
    )
    script.chmod(0o755)
    return {"CXX": str(script)}


# By how it is built: code before setup.py, and variables of its environment.
BUILDS = {
    "as it is": ("", lambda folder: {}),
    "without os.uname": ("import os; del os.uname;", lambda folder: {}),
    "without OpenMP": ("", without_openmp),
}


def built_and_tested(pair: Pair, build: str, folder: Path) -> Row:
    """Builds a copy of the sources and runs the tests on it."""
    before, variables = BUILDS[build]
    copy = copied(folder)
    changes = environment(copy, **variables(folder))
    arguments = "['setup.py', '-q', 'build_ext', '--inplace']"
    # setup.py is imported by torch: the code before it would otherwise change torch itself
    code = (
        f"import runpy, sys, torch.utils.cpp_extension; {before} sys.argv = {arguments}; "
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    tests = [f"tests/{name}.py" for name in TESTS]
    test = [pair.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    try:
        run([pair.python, "-c", code], "building", cwd=copy, env=changes)
        told = run(test, "testing", cwd=copy, env=changes).splitlines()[-1]
    except StepFailed as error:
        print(f"{pair.python}, {build}: {error}", flush=True)
        return Row(pair.version, pair.torch, build, str(error).partition(",")[0], failed=True)
    return Row(pair.version, pair.torch, build, told.strip("= ").partition(" in ")[0])


def rows(pythons: list[str], torches: list[str], folder: Path) -> Iterator[Row]:
    """Every pair as it is, and after the first one the other builds."""
    builds = list(BUILDS)
    for number, found in enumerate(pairs(pythons, torches, folder)):
        if isinstance(found, Row):
            yield found
            continue
        for build in builds:
            yield built_and_tested(found, build, folder / f"{number}-{build.replace(' ', '-')}")
        del builds[1:]


def table(found: list[Row]) -> str:
    """Markdown."""
    lines = [["Python", "torch", "build", "tests"], ["---"] * 4]
    lines += [[row.python, row.torch, row.build, row.result] for row in found]
    machine = f"{platform.system()} on {platform.machine()}"
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{machine}; tests: {', '.join(TESTS)}.\n\n{text}\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", action="append", help="names or paths; default: from 3.11 on")
    parser.add_argument("--torch", action="append", help=f"default: {', '.join(TORCHES)}")
    parser.add_argument("--folder", type=Path, help="keep environments and copies in it")
    parser.add_argument("--out", type=Path, help="where to write the table, as Markdown")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for row in rows(given.python or PYTHONS, given.torch or TORCHES, folder.resolve()):
            found.append(row)
            print(" | ".join(row[:4]), flush=True)
            if given.out is not None:
                given.out.write_text(table(found))
    return int(any(row.failed for row in found))


if __name__ == "__main__":
    sys.exit(main())
