"""Meta-learners: one file each, one small protocol, one registry."""

import importlib

from metasparse_ext.algorithms.anil import ANIL, ConvexMAML
from metasparse_ext.algorithms.base import AdaptedTasks, MetaLearner, Metrics, Source, task_call
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
from metasparse_ext.algorithms.reptile import Reptile

LEARNERS: dict[str, type[MetaLearner]] = {
    "maml": MAML,
    "fomaml": FOMAML,
    "imaml": IMAML,
    "metadock": MetaDOCK,
    "anil": ANIL,
    "convex-maml": ANIL,
    "convex-imaml": ConvexIMAML,
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
        TypeError: if ``learner`` is not a subclass of :class:`MetaLearner`.
        ValueError: if the name belongs to another learner, or has a colon, which marks a class that
            is to be imported.
    """
    _require_learner("register: learner", learner)
    if ":" in name:
        raise ValueError(f"register: name must not have a colon, got {name!r}")
    if LEARNERS.get(name, learner) is not learner:
        raise ValueError(f"register: name {name!r} belongs to {LEARNERS[name].__name__}")
    LEARNERS[name] = learner


def find(name: str) -> type[MetaLearner]:
    """Looks a learner up by its registered name, or imports ``package.module:Class``.

    Raises:
        ValueError: if there is no such learner.
        TypeError: if what was imported is no learner.
    """
    if name in LEARNERS:
        return LEARNERS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(f"unknown learner {name!r}; there are {', '.join(LEARNERS)}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"unknown learner {name!r}: {error}") from error
    _require_learner(f"{name}", found)
    return found


def _require_learner(what: str, found: object) -> None:
    if not (isinstance(found, type) and issubclass(found, MetaLearner)):
        raise TypeError(f"{what} must be a subclass of MetaLearner, got {found!r}")


__all__ = [
    "ANIL",
    "BMP",
    "CAVIA",
    "FOMAML",
    "IMAML",
    "LEARNERS",
    "MAML",
    "MMSUP",
    "AdaptedTasks",
    "ConvexIMAML",
    "ConvexMAML",
    "HeadLearner",
    "MetaDOCK",
    "MetaLearner",
    "MetaTicket",
    "Metrics",
    "MultiMAML",
    "Reptile",
    "Source",
    "find",
    "register",
    "task_call",
]
