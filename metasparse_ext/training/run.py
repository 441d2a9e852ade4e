"""A run is a folder: its configuration, its metrics, its checkpoints, its evaluations."""

from __future__ import annotations

from pathlib import Path

from metasparse_ext.training import atomic, checkpoint
from metasparse_ext.training.checkpoint import Checkpoint, CheckpointError
from metasparse_ext.training.config import RunConfig


class Run:
    """Names and reads the files of a run folder.

    ``config.json`` the configuration, ``metrics.jsonl`` the metrics, ``last.safetensors`` and
    ``best.safetensors`` the checkpoints, each beside its previous generation,
    ``evaluation-SPLIT.json`` and ``usage-SPLIT.npz`` the evaluations, ``.lock`` what the process
    that trains holds.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config_path = self.folder / "config.json"
        self.metrics_path = self.folder / "metrics.jsonl"
        self.last_path = self.folder / "last.safetensors"
        self.best_path = self.folder / "best.safetensors"
        self.lock_path = self.folder / ".lock"

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def started(self) -> bool:
        """Whether the folder holds a checkpoint to resume."""
        return checkpoint.exists(self.last_path)

    def evaluation_path(self, split: str) -> Path:
        """Where the evaluation on a split is written."""
        return self.folder / f"evaluation-{split}.json"

    def usage_path(self, split: str) -> Path:
        """Where the kernel usage found by that evaluation is written."""
        return self.folder / f"usage-{split}.npz"

    def config(self) -> RunConfig:
        """Reads the configuration.

        Raises:
            CheckpointError: If the folder holds no run, or its configuration cannot be read.
        """
        if not self.config_path.is_file():
            raise CheckpointError(f"{self.folder}: not a run folder (it has no config.json)")
        try:
            return RunConfig.from_json(self.config_path.read_text(encoding="utf-8"))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{self.config_path}: {error}") from error

    def create(self, config: RunConfig) -> None:
        """Removes what an earlier run left in the folder, and writes the configuration."""
        self.clean()
        stale = ("metrics.jsonl", "best*.safetensors", "evaluation-*.json", "usage-*.npz")
        for pattern in stale:
            for path in self.folder.glob(pattern):
                atomic.remove(path)
        atomic.replace_text(self.config_path, config.to_json())

    def clean(self) -> None:
        """Removes files that a training which was killed has left half-written."""
        written = (self.config_path, self.metrics_path, self.last_path, self.best_path)
        atomic.clean(self.folder, tuple(path.name for path in written))

    def forget(self) -> None:
        """Removes the checkpoints to resume from, so that the next training begins anew."""
        for path in (self.last_path, checkpoint.previous(self.last_path)):
            atomic.remove(path)

    @property
    def has_best(self) -> bool:
        """Whether some checkpoint was eligible."""
        return checkpoint.exists(self.best_path)

    def restore_best(self, iteration: int | None) -> bool:
        """Leaves the best checkpoint of this iteration, or with None, none.

        Of a run that died after it had written a better one, that one goes: the last checkpoint
        knows nothing of it. False if there is no whole checkpoint of that iteration.
        """
        older = checkpoint.previous(self.best_path)
        for path in (self.best_path, older):
            if iteration is not None and _iteration(path) == iteration:
                if path == older:
                    atomic.move(older, self.best_path)
                return True
        for path in (self.best_path, older):
            atomic.remove(path)
        return iteration is None

    def best(self) -> Checkpoint:
        """Reads the best eligible checkpoint, or the last one where none was eligible."""
        return checkpoint.load(self.best_path if self.has_best else self.last_path)


def _iteration(path: Path) -> int | None:
    """The iteration of a checkpoint, if the file is a whole one."""
    try:
        return checkpoint.read(path).iteration
    except CheckpointError:
        return None
