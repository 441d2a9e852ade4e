"""Training: configurations, the loop, checkpoints, evaluation."""

from metasparse_ext.training.checkpoint import Checkpoint, CheckpointError
from metasparse_ext.training.config import RunConfig
from metasparse_ext.training.evaluation import Evaluation, evaluate, predict
from metasparse_ext.training.lock import RunInUseError
from metasparse_ext.training.loop import Outcome, Reporter, Trainer, TrainingError
from metasparse_ext.training.results import Result, evaluate_run, export_masks
from metasparse_ext.training.run import Run

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Evaluation",
    "Outcome",
    "Reporter",
    "Result",
    "Run",
    "RunConfig",
    "RunInUseError",
    "Trainer",
    "TrainingError",
    "evaluate",
    "evaluate_run",
    "export_masks",
    "predict",
]
