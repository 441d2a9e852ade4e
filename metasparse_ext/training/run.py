"""A run is a folder: its configuration, its metrics, its checkpoints, its evaluations."""

from __future__ import annotations

from pathlib import Path

from metasparse_ext.training import atomic, checkpoint
from metasparse_ext.training.checkpoint import Checkpoint, CheckpointError
from metasparse_ext.training.config import RunConfig


class Run:
    """Names and reads the files of a run folder.

    ``config.json`` the configuration, ``metrics.jsonl`` the metrics, ``last.pt`` and ``best.pt``
    the checkpoints, ``evaluation-SPLIT.json`` and ``usage-SPLIT.npz`` the evaluations.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config_path = self.folder / "config.json"
        self.metrics_path = self.folder / "metrics.jsonl"
        self.last_path = self.folder / "last.pt"
        self.best_path = self.folder / "best.pt"

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def started(self) -> bool:
        """Whether the folder holds a checkpoint to resume."""
        return self.last_path.exists()

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
        """Makes the folder, without files of an earlier run, and writes the configuration."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in ("metrics.jsonl", "best.pt", "evaluation-*.json", "usage-*.npz"):
            for path in self.folder.glob(stale):
                path.unlink()
        atomic.replace_text(self.config_path, config.to_json())

    def best(self) -> Checkpoint:
        """Reads the best eligible checkpoint, or the last one where none was eligible."""
        return checkpoint.load(self.best_path if self.best_path.exists() else self.last_path)
