"""Training: configurations, the loop, checkpoints, evaluation."""

from metasparse_ext.training.checkpoint import Checkpoint, CheckpointError
from metasparse_ext.training.config import RunConfig
from metasparse_ext.training.evaluation import (
    Evaluation,
    RunEvaluation,
    evaluate,
    evaluate_run,
    export_masks,
    predict,
)
from metasparse_ext.training.loop import Outcome, Trainer, TrainingError
from metasparse_ext.training.metrics import Reporter
from metasparse_ext.training.run import Run, RunInUseError

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Evaluation",
    "Outcome",
    "Reporter",
    "Run",
    "RunConfig",
    "RunEvaluation",
    "RunInUseError",
    "Trainer",
    "TrainingError",
    "evaluate",
    "evaluate_run",
    "export_masks",
    "predict",
]
