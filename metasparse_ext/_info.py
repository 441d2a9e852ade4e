"""What this installation is made of and which backends it can use."""

import importlib.util
import platform
from typing import Any

import torch

from metasparse_ext import _library
from metasparse_ext.ops import cuda, cuda_table


def _cuda() -> str:
    record = _library.build_record()
    if torch.version.cuda is None:
        return "no (torch was built without CUDA)"
    if not torch.cuda.is_available():
        return f"no (torch has CUDA {torch.version.cuda}, but no GPU is visible)"
    kernels = _kernels(record, torch.cuda.get_device_capability())
    return f"yes ({torch.cuda.get_device_name()}; {kernels})"


def _kernels(record: dict[str, Any], capability: tuple[int, int]) -> str:
    """Whether the library has CUDA C++ kernels for a GPU of this compute capability."""
    if not record.get("cuda"):
        return f"no CUDA kernels: {record.get('cuda_reason', 'no library')}"
    archs = record["cuda_archs"]
    compiled = f"CUDA kernels compiled for {', '.join(archs)}"
    if any(cuda.runs_on(arch, capability) for arch in archs):
        return compiled
    return f"{compiled}, not for this GPU's {capability[0]}.{capability[1]}"


def _triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return "no (not installed)"
    import triton

    return f"yes ({triton.__version__})"


def _cuda_table() -> str:
    table = cuda_table.table()
    return table.status if table.device is None else f"{table.status} on {table.device}"


def _threads(record: dict[str, Any]) -> str:
    threads = torch.get_num_threads()
    if record.get("openmp", True):
        return str(threads)
    return f"{threads} of torch, 1 of the library (built without OpenMP)"


def info() -> dict[str, str]:
    """Versions and backends in use, as printed by ``metasparse info``.

    Returns:
        Ordered names and values: ``metasparse_ext``, ``python``, ``torch``, ``library`` (whether
        the compiled library is loaded, or why not), ``cpu`` (the instruction set of the CPU
        kernels), ``threads``, ``cuda`` and ``triton`` (yes or no, and why), ``cuda table`` (where
        the choice of CUDA backends comes from).
    """
    from metasparse_ext import __version__

    record = _library.build_record()
    if _library.problem is None:
        library = f"loaded (built with torch {record['torch']}, {record['compiler']})"
    else:
        library = f"not loaded: {_library.problem}"
    return {
        "metasparse_ext": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "library": library,
        "cpu": record.get("cpu_isa", "reference ops only"),
        "threads": _threads(record),
        "cuda": _cuda(),
        "triton": _triton(),
        "cuda table": _cuda_table(),
    }
