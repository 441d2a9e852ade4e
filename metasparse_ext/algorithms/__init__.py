"""Meta-learners: one file each, one small protocol, one registry."""

from metasparse_ext import _entries
from metasparse_ext._arguments import refuse, require, require_type, shown
from metasparse_ext.algorithms.anil import ANIL, ConvexMAML
from metasparse_ext.algorithms.base import MetaLearner
from metasparse_ext.algorithms.bmp import BMP
from metasparse_ext.algorithms.cavia import CAVIA
from metasparse_ext.algorithms.convex_imaml import ConvexIMAML
from metasparse_ext.algorithms.head_learner import HeadLearner
from metasparse_ext.algorithms.imaml import IMAML
from metasparse_ext.algorithms.maml import FOMAML, MAML
from metasparse_ext.algorithms.meta_ticket import MetaTicket
from metasparse_ext.algorithms.metadock import MetaDOCK
from metasparse_ext.algorithms.mmsup import MMSUP
from metasparse_ext.algorithms.multi_maml import MultiMAML
from metasparse_ext.algorithms.protonet import ProtoNet
from metasparse_ext.algorithms.r2d2 import R2D2
from metasparse_ext.algorithms.records import Metrics, Source
from metasparse_ext.algorithms.reptile import Reptile
from metasparse_ext.algorithms.task_networks import AdaptedTasks, task_call

LEARNERS: dict[str, type[MetaLearner]] = {
    "maml": MAML,
    "fomaml": FOMAML,
    "imaml": IMAML,
    "metadock": MetaDOCK,
    "anil": ANIL,
    "convex-maml": ANIL,
    "convex-imaml": ConvexIMAML,
    "protonet": ProtoNet,
    "r2d2": R2D2,
    "reptile": Reptile,
    "cavia": CAVIA,
    "bmp": BMP,
    "mmsup": MMSUP,
    "multi-maml": MultiMAML,
    "meta-ticket": MetaTicket,
}


def register(name: str, learner: type[MetaLearner]) -> None:
    """Adds a learner to the registry: the command line lists it, and runs can name it.

    Args:
        name: What the command line calls it.
        learner: The class. Its keyword arguments are the learner's options, its ``source`` says
            where it is from.

    Raises:
        TypeError: if ``name`` is no text, or ``learner`` not a subclass of :class:`MetaLearner`.
        ValueError: if the name belongs to another learner, or has a colon, which marks a class that
            is to be imported.
    """
    require_type("register", "name", name, str, "text")
    require(bool(name) and ":" not in name, "register", "name", "a word without a colon", name)
    _require_learner("register", "learner", learner, shown(learner))
    if LEARNERS.get(name, learner) is not learner:
        got = f"{name!r}, which belongs to {LEARNERS[name].__name__}"
        refuse("register", "name", "that of no other learner", got)
    LEARNERS[name] = learner


def find(name: str) -> type[MetaLearner]:
    """Looks a learner up by its registered name, or imports ``package.module:Class``.

    Raises:
        ValueError: if there is no such learner.
        TypeError: if the name is no text, or what was imported is no learner.
    """
    require_type("find", "name", name, str, "text")
    if name in LEARNERS:
        return LEARNERS[name]
    found = _entries.find("find", "name", name, LEARNERS, "Class")
    _require_learner("find", "name", found, f"{name!r}, {shown(found)}")
    return found


def _require_learner(owner: str, name: str, found: object, got: str) -> None:
    if not (isinstance(found, type) and issubclass(found, MetaLearner)):
        refuse(owner, name, "a subclass of MetaLearner", got, TypeError)


__all__ = [
    "ANIL",
    "BMP",
    "CAVIA",
    "FOMAML",
    "IMAML",
    "LEARNERS",
    "MAML",
    "MMSUP",
    "R2D2",
    "AdaptedTasks",
    "ConvexIMAML",
    "ConvexMAML",
    "HeadLearner",
    "MetaDOCK",
    "MetaLearner",
    "MetaTicket",
    "Metrics",
    "MultiMAML",
    "ProtoNet",
    "Reptile",
    "Source",
    "find",
    "register",
    "task_call",
]
