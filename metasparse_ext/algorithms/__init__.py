"""Meta-learners: one file each, one small protocol."""

from metasparse_ext.algorithms.base import AdaptedTasks, MetaLearner, Metrics, task_call
from metasparse_ext.algorithms.maml import FOMAML, MAML

LEARNERS: dict[str, type[MetaLearner]] = {
    "maml": MAML,
    "fomaml": FOMAML,
}

__all__ = ["FOMAML", "LEARNERS", "MAML", "AdaptedTasks", "MetaLearner", "Metrics", "task_call"]
