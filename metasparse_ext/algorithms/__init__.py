"""Meta-learners: one file each, one small protocol."""

from metasparse_ext.algorithms.base import AdaptedTasks, MetaLearner, Metrics, task_call
from metasparse_ext.algorithms.imaml import IMAML
from metasparse_ext.algorithms.maml import FOMAML, MAML
from metasparse_ext.algorithms.metadock import MetaDOCK
from metasparse_ext.algorithms.presets import PRESETS, Preset, preset

LEARNERS: dict[str, type[MetaLearner]] = {
    "maml": MAML,
    "fomaml": FOMAML,
    "imaml": IMAML,
    "metadock": MetaDOCK,
}

__all__ = [
    "FOMAML",
    "IMAML",
    "LEARNERS",
    "MAML",
    "PRESETS",
    "AdaptedTasks",
    "MetaDOCK",
    "MetaLearner",
    "Metrics",
    "Preset",
    "preset",
    "task_call",
]
