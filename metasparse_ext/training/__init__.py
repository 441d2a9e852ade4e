"""Training: configurations, the loop, checkpoints, evaluation."""

from metasparse_ext.training.checkpoint import Checkpoint, CheckpointError
from metasparse_ext.training.config import RunConfig
from metasparse_ext.training.evaluation import RunEvaluation, evaluate_run, export_masks
from metasparse_ext.training.loop import Outcome, Trainer, TrainingError
from metasparse_ext.training.metrics import Reporter
from metasparse_ext.training.run import Run, RunInUseError
from metasparse_ext.training.scores import Evaluation, evaluate, predict

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
