"""What is packed: a source distribution that has all it is built from, and its metadata."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
# All of these is in a source distribution, but what was built.
PYTHON = ("benchmarks", "build_backend", "metasparse_ext", "tests", "tools")
FOLDERS = (*PYTHON, "csrc", "docs", "notebooks")
PAPERS = ("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md")
BUILD = (".clang-format", "MANIFEST.in", "Makefile", "mkdocs.yml", "pyproject.toml", "setup.py")
FILES = (*PAPERS, *BUILD)
BUILT = ("*.pyc", "*.so", "_build.json", "__pycache__", ".*", "*.egg-info")


def run(*command: str | Path, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": "", **changes},
        capture_output=True,
        text=True,
        check=False,
    )


def backend(tree: Path, call: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """A hook of the build backend, as a front end without isolation calls it."""
    code = f"import sys; sys.path.insert(0, 'build_backend'); import backend; backend.{call}"
    return run(sys.executable, "-c", code, cwd=tree, **changes)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the sources, without what was built."""
    folder = tmp_path_factory.mktemp("tree")
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(*BUILT))
    # What a build leaves beside the sources stays there.
    for name in ("_C.abi3.so", "_build.json"):
        (folder / "metasparse_ext" / name).write_text("{}")
    return folder


@pytest.fixture(scope="module")
def unpacked(tree, tmp_path_factory):
    """A source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("dist")
    done = backend(tree, f"build_sdist({str(folder)!r})")
    assert done.returncode == 0, done.stderr
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        # Python 3.11.4 has filters, and later ones warn without.
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(folder, **safe)
    return folder / archive.name.removesuffix(".tar.gz")


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def requirements(metadata: str) -> list[str]:
    return Parser().parsestr(metadata).get_all("Requires-Dist")


def test_a_source_distribution_has_every_source_and_nothing_built(tree, unpacked):
    built = {"metasparse_ext/_C.abi3.so", "metasparse_ext/_build.json"}
    made = {name for name in files(tree) if name.startswith("metasparse_ext.egg-info")}
    packed = {name for name in files(unpacked) if ".egg-info" not in name}
    assert packed == files(tree) - built - made | {"PKG-INFO", "setup.cfg"}
    assert len([name for name in packed if name.endswith(".h")]) > 20


def test_a_source_distribution_needs_no_certain_torch(unpacked):
    assert "torch>=2.11" in requirements((unpacked / "PKG-INFO").read_text())


def test_a_source_distribution_runs_its_reference(unpacked):
    code = (
        "import torch, metasparse_ext as ms; print(ms.__file__);"
        "print(ms.masked_conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3), torch.ones(1, 1)))"
    )
    changes = {"METASPARSE_NO_BUILD": "1", "PYTHONPATH": str(unpacked)}
    done = run(sys.executable, "-c", code, cwd=unpacked, **changes)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        str(unpacked / "metasparse_ext" / "__init__.py"),
        "tensor([[[[9.]]]])",
    ]
    assert "the compiled library of metasparse_ext is missing; build it" in done.stderr


def test_a_library_needs_the_torch_that_it_was_built_for(tree, tmp_path):
    done = backend(tree, f"prepare_metadata_for_build_wheel({str(tmp_path)!r})")
    assert done.returncode == 0, done.stderr
    (metadata,) = tmp_path.glob("*.dist-info/METADATA")
    minor = ".".join(torch.__version__.split(".")[:2])
    assert f"torch=={minor}.*" in requirements(metadata.read_text())


def test_a_wheel_without_the_library_says_that_it_has_none(tree, tmp_path):
    done = backend(tree, f"build_wheel({str(tmp_path)!r})", METASPARSE_NO_BUILD="1")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
        (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        assert "torch>=2.11" in requirements(archive.read(metadata).decode())
        assert not [name for name in archive.namelist() if name.endswith(".so")]
    installed = tmp_path / "installed"
    changes = {"PYTHONPATH": str(installed)}
    done = run(sys.executable, "-m", "metasparse_ext", "info", cwd=tmp_path, **changes)
    assert done.returncode == 0, done.stderr
    assert "was installed without its compiled library; reinstall it" in done.stderr
    assert "reference ops only" in done.stdout


def test_a_machine_without_a_compiler_is_told_what_to_do(tree, tmp_path):
    changes = {"CC": "no-such-compiler", "CXX": "no-such-compiler"}
    done = backend(tree, f"build_wheel({str(tmp_path)!r})", **changes)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "metasparse_ext 0.1.0: expected a C++20 compiler, got none by the name "
        "'no-such-compiler': install one (such as g++ 11 or later), name yours in the variables "
        "CC and CXX, or set METASPARSE_NO_BUILD=1 to install the slow reference ops alone"
    )
