"""A run is a folder: its files, the lock of the process that trains in it, and on what machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from torch.utils._pytree import tree_leaves

from metasparse_ext import _atomic as atomic
from metasparse_ext import _library
from metasparse_ext._arguments import require_path, require_size
from metasparse_ext._json import parse
from metasparse_ext.data.batch import InputShape, read_shape
from metasparse_ext.ops import get_backend
from metasparse_ext.training import checkpoint
from metasparse_ext.training.checkpoint import Checkpoint, CheckpointError
from metasparse_ext.training.config import RunConfig
from metasparse_ext.training.memory import Chunk

try:
    import fcntl
except ImportError:  # pragma: no cover
    fcntl = None  # type: ignore[assignment]  # Windows: there is no such lock


# What reads the files that a run is exported to, by their endings.
_READERS = {
    ".pt2": "torch.export.load",
    ".onnx": "onnxruntime.InferenceSession",
    ".safetensors": "safetensors.torch.load_file",
    ".metasparse": "metasparse_ext.load_sparse",
}


# Checkpoints to resume from, and what shows that a run has done iterations.
_LAST = ("last.safetensors", "last.previous.safetensors")
_LEARNED = ("metrics.jsonl", "best*.safetensors")


class Run:
    """Names and reads the files of a run folder.

    ``config.json`` the configuration, ``images.json`` the shape of the images,
    ``metrics.jsonl`` the metrics, ``last.safetensors`` and ``best.safetensors`` the checkpoints,
    each beside its previous generation, ``memory.json`` how many tasks at a time a budget of memory
    holds, ``evaluation-NAME.json`` and ``usage-NAME.npz`` the evaluations, ``.lock`` what the
    process that trains holds.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = require_path("Run", "folder", folder)
        self.config_path = self.folder / "config.json"
        self.metrics_path = self.folder / "metrics.jsonl"
        self.last_path = self.folder / "last.safetensors"
        self.best_path = self.folder / "best.safetensors"
        self.images_path = self.folder / "images.json"
        self.memory_path = self.folder / "memory.json"
        self.lock_path = self.folder / ".lock"

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def started(self) -> bool:
        """Whether the folder holds a checkpoint to resume."""
        return checkpoint.exists(self.last_path)

    @property
    def untrained(self) -> bool:
        """Whether the run was begun and has done no iteration: nothing of it can be lost."""
        return not self._recorded and _iteration(self.last_path) == 0

    @property
    def _recorded(self) -> bool:
        return self.metrics_path.is_file() and self.metrics_path.stat().st_size > 0

    @property
    def lost(self) -> bool:
        """Whether a run did iterations here, and the checkpoints to resume from are gone."""
        return not self.started and (self.has_best or self._recorded)

    def refuse_lost(self) -> NoReturn:
        """Says of a run that is lost that none begins in its folder, which would remove the rest.

        Raises:
            CheckpointError: Always.
        """
        left = self.best_path if self.has_best else self.metrics_path
        raise CheckpointError(
            f"{self}: there is no {self.last_path.name} to go on from, beside {left.name}: "
            "another run needs another folder"
        )

    def evaluation_path(self, name: str) -> Path:
        """Where an evaluation is written; its name is the split where all else is the run's own."""
        return self.folder / f"evaluation-{name}.json"

    def usage_path(self, name: str) -> Path:
        """Where the kernel usage found by that evaluation is written."""
        return self.folder / f"usage-{name}.npz"

    def config(self) -> RunConfig:
        """Reads the configuration.

        Raises:
            CheckpointError: If the folder holds no run, or its configuration cannot be read.
        """
        if not self.config_path.is_file():
            reader = _READERS.get(self.folder.suffix) if self.folder.is_file() else None
            why = (
                "it has no config.json"
                if reader is None
                else f"a network that was exported is not read back as a run: {reader} reads it"
            )
            raise CheckpointError(f"{self.folder}: not a run folder ({why})")
        try:
            return RunConfig.from_json(self.config_path.read_text(encoding="utf-8"))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{self.config_path}: {error}") from error

    def begun_with(self, last: Checkpoint) -> RunConfig:
        """The configuration in the last checkpoint.

        Raises:
            CheckpointError: If it is none.
        """
        try:
            return RunConfig.from_dict(last.config)
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{self.last_path}: {error}") from error

    def image_shape(self) -> InputShape | None:
        """(C, H, W) of the images that the network is for, if the run says so.

        Of inputs that are no images, their shape; of several, a tuple or a dict of shapes.

        Raises:
            CheckpointError: If the file is damaged.
        """
        said = self._inputs()
        return None if said is None else said[0]

    def outputs(self) -> int | None:
        """How many numbers the network predicts, or None where it tells classes apart.

        Raises:
            CheckpointError: If the file is damaged.
        """
        said = self._inputs()
        return None if said is None else said[1]

    def _inputs(self) -> tuple[InputShape, int | None] | None:
        if not self.images_path.is_file():
            return None
        try:
            said = parse(self.images_path.read_bytes())
            shape = read_shape(said["shape"])
            for size in tree_leaves(shape):
                require_size("Run", "image_shape", size)
            if said.get("outputs") is not None:
                require_size("Run", "outputs", said["outputs"])
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"{self.images_path}: not the shape of images: {error}"
            ) from error
        return shape, said.get("outputs")

    def chunk(self, budget: str | None) -> Chunk | None:
        """How many tasks at a time were found to fit into a budget of memory, if they were.

        Raises:
            CheckpointError: If the file is damaged.
        """
        if budget is None or not self.memory_path.is_file():
            return None
        try:
            found = Chunk(**parse(self.memory_path.read_bytes()))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{self.memory_path}: {error}") from error
        return found if found.budget == budget else None

    def create(
        self, config: RunConfig, image_shape: InputShape, outputs: int | None = None
    ) -> None:
        """Removes what an earlier run left in the folder; writes configuration and image shape.

        And how many ``outputs`` the network has, where they are no classes.
        """
        self.clean()
        self._remove(*_LAST, *_LEARNED, "images.json", "memory.json")
        self._remove("evaluation-*.json", "usage-*.npz")
        self.describe(config, image_shape, outputs)

    def describe(
        self, config: RunConfig, image_shape: InputShape, outputs: int | None = None
    ) -> None:
        """Writes configuration and image shape, over what an earlier training wrote."""
        atomic.replace_text(self.config_path, config.to_json())
        inputs = {"shape": image_shape, **({} if outputs is None else {"outputs": outputs})}
        atomic.replace_text(self.images_path, json.dumps(inputs) + "\n")

    def clean(self) -> None:
        """Removes files that a training or evaluation which was killed has left half-written."""
        written = (
            *(self.config_path, self.images_path, self.metrics_path, self.memory_path),
            *(self.last_path, self.best_path),
            *(self.evaluation_path("*"), self.usage_path("*")),
        )
        atomic.clean(self.folder, tuple(path.name for path in written))

    def forget(self) -> None:
        """Removes checkpoints and metrics, so that the next training begins anew.

        Raises:
            RunInUseError: If a process is training in the folder.
        """
        if not self.folder.is_dir():
            return
        lock = RunLock(self.lock_path)
        if not lock.acquire():
            raise RunInUseError.of(self)
        try:
            self._remove(*_LEARNED, *_LAST)
        finally:
            lock.release()

    def _remove(self, *patterns: str) -> None:
        for pattern in patterns:
            for path in self.folder.glob(pattern):
                atomic.remove(path)

    @property
    def has_best(self) -> bool:
        """Whether some checkpoint was eligible."""
        return checkpoint.exists(self.best_path)

    def restore_last(self) -> None:
        """Gives the previous checkpoint the name of the last one, where that one is damaged.

        The next one to be saved would else keep the damaged file in place of the whole one.
        """
        if _iteration(self.last_path) is None:
            atomic.move(checkpoint.previous(self.last_path), self.last_path)

    def restore_best(self, iteration: int | None, config: RunConfig) -> bool:
        """Leaves the best checkpoint of this iteration, or with None, none.

        Of a run that died after it had written a better one, that one goes: the last checkpoint
        knows nothing of it. False if there is no whole checkpoint of that iteration, of a run of
        this configuration.
        """
        older = checkpoint.previous(self.best_path)
        for path in (self.best_path, older):
            if iteration is not None and _iteration(path, config) == iteration:
                if path == older:
                    atomic.move(older, self.best_path)
                return True
        for path in (self.best_path, older):
            atomic.remove(path)
        return iteration is None

    def best(self) -> Checkpoint:
        """Reads the best eligible checkpoint, or the last one where none was eligible.

        Raises:
            CheckpointError: If it is missing, damaged, or of a run of another configuration.
        """
        path = self.best_path if self.has_best else self.last_path
        saved = checkpoint.load(path)
        _require_of(path, saved, self.config())
        return saved


def _iteration(path: Path, config: RunConfig | None = None) -> int | None:
    """The iteration of a checkpoint, if it is whole, and of a run that goes on like this."""
    try:
        saved = checkpoint.read(path)
        if config is not None:
            _require_of(path, saved, config)
    except CheckpointError:
        return None
    return saved.iteration


def _require_of(path: Path, saved: Checkpoint, config: RunConfig) -> None:
    """Refuses a checkpoint of another run, whose state may well fit the network."""
    try:
        config.mending_changes(RunConfig.from_dict(saved.config), str(path))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"not a checkpoint of this run: {error}") from error


class RunInUseError(Exception):
    """A run folder in which another process trains."""

    @classmethod
    def of(cls, run: Run) -> Self:
        """For this run."""
        return cls(f"{run}: another process is training in this folder")


class RunLock:
    """A lock of the operating system on a file of a run folder; it dies with the process.

    Args:
        path: The file, which stays when the lock is released.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Takes the lock, if this object has not got it; False if another one holds it."""
        if fcntl is None or self._descriptor is not None:
            return True
        descriptor = atomic.open_or_create(self._path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Gives the lock back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        self.release()


def machine(config: RunConfig) -> dict[str, Any]:
    """What the numbers of a run depend on beside its configuration.

    By name: torch, the instruction set, threads and backend of the kernels, and the GPU.
    """
    loaded = _library.problem is None
    found = {
        "torch": torch.__version__,
        "instruction set": _library.build_record().get("cpu_isa") if loaded else None,
        "threads": torch.get_num_threads(),
        "CPU backend": get_backend("cpu") if loaded else None,
        "CUDA backend": get_backend("cuda"),
    }
    if torch.device(config.device).type == "cuda":
        found["GPU"] = torch.cuda.get_device_name(config.device)
    return found


def changes(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs, in words."""
    names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    return [f"{name}: {now.get(name)}, it was {was.get(name)}" for name in names]
