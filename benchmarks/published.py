"""Numbers of the sources, for the tables of ``docs/evidence.md``: accuracies in percent.

Where a source's paper was not at hand they are from copies of its tables; such a table says so.
"""

from __future__ import annotations

# iMAML (NeurIPS 2019), table 2; MAML's and FOMAML's rows are from there, Reptile's with
# transduction.
IMAML: dict[str, dict[str, str]] = {
    "5way-1shot": {
        "maml": "98.7 ± 0.4",
        "fomaml": "98.3 ± 0.5",
        "reptile": "97.68 ± 0.04",
        "imaml": "99.16 ± 0.35",
        "imaml, Hessian-free": "99.50 ± 0.26",
    },
    "5way-5shot": {
        "maml": "99.9 ± 0.1",
        "fomaml": "99.2 ± 0.2",
        "reptile": "99.48 ± 0.06",
        "imaml": "99.67 ± 0.12",
        "imaml, Hessian-free": "99.74 ± 0.11",
    },
    "20way-1shot": {
        "maml": "95.8 ± 0.3",
        "fomaml": "89.4 ± 0.5",
        "reptile": "89.43 ± 0.14",
        "imaml": "94.46 ± 0.42",
        "imaml, Hessian-free": "96.18 ± 0.36",
    },
    "20way-5shot": {
        "maml": "98.9 ± 0.2",
        "fomaml": "97.9 ± 0.1",
        "reptile": "97.12 ± 0.32",
        "imaml": "98.69 ± 0.1",
        "imaml, Hessian-free": "99.14 ± 0.1",
    },
}

# CIFAR-FS on Conv-4: MAML and R2-D2 of Bertinetto et al. (ICLR 2019), ANIL of learn2learn's
# examples.
CIFAR_FS: dict[str, dict[str, str]] = {
    "cifar-fs-1shot": {"maml": "58.9 ± 1.9", "r2d2": "65.3"},
    "cifar-fs-5shot": {"maml": "71.5 ± 1.0", "convex-maml": "68.3", "r2d2": "79.4"},
}

# GEMS (WACV 2023), supplement, table 2: accuracy on each of two distributions, and a time without
# a unit.
GEMS: dict[str, dict[str, tuple[float, float, float]]] = {
    "CUB + Aircraft": {
        "maml": (46.8, 30.9, 7.07),
        "multi-maml": (53.3, 39.9, 15.51),
        "bmp": (52.8, 42.8, 12.13),
        "mmsup": (54.5, 39.7, 8.76),
    },
    "VGG Flowers + Aircraft": {
        "maml": (65.6, 34.2, 7.05),
        "multi-maml": (72.8, 39.9, 14.92),
        "bmp": (73.8, 44.8, 12.09),
        "mmsup": (72.2, 41.4, 8.2),
    },
    "Fungi + Aircraft": {
        "maml": (37.2, 32.4, 8.6),
        "multi-maml": (42.4, 39.9, 16.92),
        "bmp": (43.7, 43.8, 13.7),
        "mmsup": (39.3, 42.7, 14.31),
    },
}

# The report on convex heads, table 2: Omniglot, then mini-ImageNet.
CONVEX: dict[str, dict[str, tuple[int, int]]] = {
    "1shot": {
        "maml": (76, 42),
        "convex-maml": (81, 42),
        "imaml": (75, 42),
        "convex-imaml": (81, 45),
        "reptile": (59, 28),
        "cavia": (72, 41),
    },
    "5shot": {
        "maml": (91, 59),
        "convex-maml": (95, 62),
        "imaml": (92, 49),
        "convex-imaml": (88, 62),
        "reptile": (68, 29),
        "cavia": (79, 57),
    },
}

# "Finding Meta Winning Ticket" (KDD 2022), abstract: cost of the early search, part of the
# iterative one's.
TICKETS: dict[str, str] = {"conv4": "8 to 14 %", "resnet12": "19 to 29 %"}


def of(task: str, learner: str) -> str:
    """The accuracy on tasks of five classes, as of ``omniglot-1shot``; empty if there is none."""
    data, _, shots = task.rpartition("-")
    if data == "cifar-fs":
        return CIFAR_FS[task].get(learner, "")
    number = IMAML[f"5way-{shots}"].get(learner)
    return number or f"{CONVEX[shots][learner][0]}"
