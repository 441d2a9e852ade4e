"""Meta-learners: one file each, one small protocol."""

from metasparse_ext.algorithms.base import AdaptedTasks, MetaLearner, Metrics, task_call
from metasparse_ext.algorithms.bmp import BMP
from metasparse_ext.algorithms.cavia import CAVIA
from metasparse_ext.algorithms.convex_imaml import ConvexIMAML
from metasparse_ext.algorithms.convex_maml import ConvexMAML
from metasparse_ext.algorithms.head_learner import HeadLearner
from metasparse_ext.algorithms.imaml import IMAML
from metasparse_ext.algorithms.maml import FOMAML, MAML
from metasparse_ext.algorithms.meta_ticket import MetaTicket
from metasparse_ext.algorithms.metadock import MetaDOCK
from metasparse_ext.algorithms.mmsup import MMSUP
from metasparse_ext.algorithms.multi_maml import MultiMAML
from metasparse_ext.algorithms.presets import PRESETS, Preset, preset
from metasparse_ext.algorithms.reptile import Reptile
from metasparse_ext.algorithms.sources import SOURCES, Source

LEARNERS: dict[str, type[MetaLearner]] = {
    "maml": MAML,
    "fomaml": FOMAML,
    "imaml": IMAML,
    "metadock": MetaDOCK,
    "convex-maml": ConvexMAML,
    "anil": ConvexMAML,
    "convex-imaml": ConvexIMAML,
    "reptile": Reptile,
    "cavia": CAVIA,
    "bmp": BMP,
    "mmsup": MMSUP,
    "multi-maml": MultiMAML,
    "meta-ticket": MetaTicket,
}

__all__ = [
    "BMP",
    "CAVIA",
    "FOMAML",
    "IMAML",
    "LEARNERS",
    "MAML",
    "MMSUP",
    "PRESETS",
    "SOURCES",
    "AdaptedTasks",
    "ConvexIMAML",
    "ConvexMAML",
    "HeadLearner",
    "MetaDOCK",
    "MetaLearner",
    "MetaTicket",
    "Metrics",
    "MultiMAML",
    "Preset",
    "Reptile",
    "Source",
    "preset",
    "task_call",
]
