"""The files that an adapted network leaves in: a program, ONNX, tensors, or sparse tensors."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import io
import json
import os
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from torch import Tensor, fx, nn

import metasparse_ext
from metasparse_ext import _atomic as atomic
from metasparse_ext._arguments import require, require_choice, require_path, require_tensor
from metasparse_ext.export import sparse
from metasparse_ext.export.agreement import reason

if TYPE_CHECKING:
    from metasparse_ext.training.trained import AdaptedTask

Shape = tuple[int, int, int]

#: The ending of a file, by the name of its format.
ENDINGS = {
    "torch": ".pt2",
    "onnx": ".onnx",
    "safetensors": ".safetensors",
    "metasparse": ".metasparse",
}
#: What a ``.pt2`` file has its settings in.
SETTINGS = "metasparse.json"

_INPUT, _OUTPUT, _COUNT = "images", "logits", "count"
# An example of 2 images or more makes the number of images a variable.
_EXAMPLES = 3
# Of so many images is each layer's result kept to be compared.
_SOME = 8


def format_of(owner: str, path: Path, to: str | None, endings: Mapping[str, str] = ENDINGS) -> str:
    """The format of a file by its ending, which ``to`` must agree with.

    Raises:
        FileNotFoundError: If there is no folder for the file.
        ValueError: If the ending is that of no format, or of another one.
    """
    known = {ending: name for name, ending in endings.items()}
    if to is not None:
        require_choice(owner, "to", to, tuple(endings))
        expected = f"a file that ends in {endings[to]}, for {to}"
        require(path.suffix == endings[to], owner, "out", expected, str(path))
    expected = f"a file that ends in {', '.join(known)}"
    require(path.suffix in known, owner, "out", expected, str(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return known[path.suffix]


def ready(path: str | Path, to: str | None) -> tuple[Path, str]:
    """The file and its format, looked at before anything is computed.

    Raises:
        FileNotFoundError: If there is no folder for the file.
        ImportError: If packages for the format are not installed: saying what to install.
        TypeError, ValueError: If the file cannot be one, or is of no format or another one.
    """
    path = require_path("export", "out", path)
    to = format_of("export", path, to)
    wanted = {"onnx": ("onnx", "onnxscript")}.get(to, ())
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"export: --to {to} needs {' and '.join(missing)}: pip install {' '.join(missing)}"
        )
    return path, to


def write(task: AdaptedTask, path: str | Path, to: str | None, transductive: bool) -> None:
    """Writes an adapted task to a file; what was there before is replaced once it is whole.

    Raises:
        ImportError: If packages for the format are not installed.
        OSError: If the file cannot be written.
        TypeError, ValueError: If an argument is wrong, or the network is not one for the format.
    """
    path, to = ready(path, to)
    network = task.network(transductive=transductive)
    data = _WRITERS[to](network, task.reader.shape, described(task, transductive))
    if isinstance(network, fx.GraphModule) and to == "metasparse":
        images = require_tensor("export", "support.images", task.support.images)
        some = images[0, :: -(-images.shape[1] // _SOME)].cpu()
        sparse.require_read(data, network, some)
    atomic.replace(path, data)


def described(task: AdaptedTask, transductive: bool) -> dict[str, str]:
    """What a file says of itself, as texts: JSON but for plain words."""
    _, height, width = task.reader.shape
    settings = {
        "classes": list(task.classes),
        "images": dataclasses.asdict(task.reader),
        "input": f"float32 (N, {task.reader.shape[0]}, {height}, {width}), pixels / 255",
        "output": "logits (N, classes)",
        "statistics": "of the images given" if transductive else "of the support set",
        "metasparse_ext": metasparse_ext.__version__,
        **task.origin,
    }
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in settings.items()}


def program(network: nn.Module, shape: Shape) -> torch.export.ExportedProgram:
    """The network as operators of PyTorch alone, for any number of images.

    Raises:
        ValueError: If ``torch.export`` cannot make one of it.
    """
    like = next((p for p in network.state_dict().values() if p.is_floating_point()), torch.ones(()))
    images = torch.zeros(_EXAMPLES, *shape, dtype=like.dtype)
    count = torch.export.Dim(_COUNT, min=1)
    with _refusing("torch.export"):
        exported = torch.export.export(network, (images,), dynamic_shapes=({0: count},))
    if any("metasparse" in str(node.target) for node in exported.graph.nodes):
        exported = exported.run_decompositions(metasparse_ext.decompositions())
    return exported


@contextmanager
def _refusing(exporter: str) -> Generator[None]:
    """Refuses a network that an exporter of PyTorch cannot take, whatever that raises."""
    try:
        yield
    except Exception as error:
        expected = f"one that {exporter} can take"
        said = reason(error)
        raise ValueError(f"export: expected the network to be {expected}: {said}") from error


def _torch(network: nn.Module, shape: Shape, settings: Mapping[str, str]) -> bytes:
    file = io.BytesIO()
    texts = {SETTINGS: json.dumps(settings)}
    torch.export.save(program(network, shape), file, extra_files=texts)
    return file.getvalue()


def _onnx(network: nn.Module, shape: Shape, settings: Mapping[str, str]) -> bytes:
    exported = program(network, shape)
    with warnings.catch_warnings(), _refusing("torch.onnx.export"):
        warnings.simplefilter("ignore")  # of the exporter about itself
        made = torch.onnx.export(
            exported,
            dynamo=True,
            verbose=False,
            input_names=[_INPUT],
            output_names=[_OUTPUT],
        )
    assert made is not None
    made.model.metadata_props.update(settings)
    proto = made.model_proto
    # The number of images gets a name of its own; shapes in between would keep the former one.
    del proto.graph.value_info[:]
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = _COUNT
    return proto.SerializeToString()


def _safetensors(network: nn.Module, _: Shape, settings: Mapping[str, str]) -> bytes:
    # Copies: a file holds no tensor under two names.
    tensors: dict[str, Tensor] = {n: t.clone() for n, t in network.state_dict().items()}
    return safetensors.torch.save(tensors, dict(settings))


def _metasparse(network: nn.Module, _: Shape, settings: Mapping[str, str]) -> bytes:
    return sparse.to_bytes(network, settings)


_WRITERS: dict[str, Callable[[nn.Module, Shape, Mapping[str, str]], bytes]] = {
    "torch": _torch,
    "onnx": _onnx,
    "safetensors": _safetensors,
    "metasparse": _metasparse,
}
