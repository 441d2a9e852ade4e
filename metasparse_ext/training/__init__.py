"""Training: configurations, the loop, checkpoints, evaluation."""

from metasparse_ext.training.checkpoint import Checkpoint, CheckpointError
from metasparse_ext.training.compare import Comparison, Contender, compare
from metasparse_ext.training.config import RunConfig
from metasparse_ext.training.evaluation import evaluate_run, export_masks
from metasparse_ext.training.kept import RunEvaluation
from metasparse_ext.training.loop import Outcome, Trainer, TrainingError
from metasparse_ext.training.metrics import Reporter
from metasparse_ext.training.paired import Difference
from metasparse_ext.training.reporters import TensorBoard, WandB
from metasparse_ext.training.run import Run, RunInUseError
from metasparse_ext.training.scores import Evaluation, evaluate, predict
from metasparse_ext.training.trained import AdaptedTask, Prediction, Trained, load

__all__ = [
    "AdaptedTask",
    "Checkpoint",
    "CheckpointError",
    "Comparison",
    "Contender",
    "Difference",
    "Evaluation",
    "Outcome",
    "Prediction",
    "Reporter",
    "Run",
    "RunConfig",
    "RunEvaluation",
    "RunInUseError",
    "TensorBoard",
    "Trained",
    "Trainer",
    "TrainingError",
    "WandB",
    "compare",
    "evaluate",
    "evaluate_run",
    "export_masks",
    "load",
    "predict",
]
