"""Published hyperparameters by name, for example "metadock/cifar-fs/5way-5shot".

What a source does not state is left at the package's default and named in the preset's note. MAML's
code sums the per-image losses of a task and divides by the shots, so its loss is ``ways`` times the
mean cross-entropy that this package minimises; the inner learning rates here are multiplied by
``ways`` to take the same steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One published setting; the fields are named as in a run's configuration.

    Attributes:
        learner: Name in ``LEARNERS``, and ``options`` for its constructor.
        data, image_size, rotations: The data set and how its images are read.
        ways, shots, queries, tasks: Classes of a task, support and query images of a class, tasks
            of a meta-batch.
        width, strided: Of the Conv-4 backbone.
        iterations, optimizer, meta_lr, adam_eps, schedule, clip_value: The outer loop.
        note: What was left open by the sources, or differs between them.
    """

    learner: str
    data: str
    ways: int
    shots: int
    queries: int
    tasks: int
    iterations: int
    meta_lr: float
    image_size: int
    options: Mapping[str, Any] = field(default_factory=dict)
    width: int = 64
    strided: bool = True
    rotations: bool = False
    optimizer: str = "adam"
    adam_eps: float = 1e-8
    schedule: str = "constant"
    clip_value: float | None = None
    note: str = ""

    def settings(self) -> dict[str, Any]:
        """The fields but the note: keyword arguments of a run's configuration."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        del values["note"]
        return {**values, "options": dict(self.options)}


def preset(name: str) -> Preset:
    """Looks a preset up.

    Raises:
        ValueError: if there is none of that name; the message lists the names.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def _task(ways: int, shots: int) -> str:
    return f"{ways}way-{shots}shot"


def _maml() -> dict[str, Preset]:
    """Finn et al. 2017, from the official code."""
    presets = {}
    for learner in ("maml", "fomaml"):
        for ways, rate, steps, tasks in ((5, 0.4, 1, 32), (20, 0.1, 5, 16)):
            for shots in (1, 5):
                presets[f"{learner}/omniglot/{_task(ways, shots)}"] = Preset(
                    learner=learner,
                    options={"inner_lr": rate * ways, "inner_steps": steps, "adapt_steps": 10},
                    data="omniglot",
                    image_size=28,
                    rotations=True,
                    ways=ways,
                    shots=shots,
                    queries=shots,
                    tasks=tasks,
                    iterations=60_000,
                    meta_lr=1e-3,
                    note="The paper states 3 steps at test time for 5-way, its code takes 10. The "
                    "code's head reads the spatial mean of the last map.",
                )
        for shots in (1, 5):
            presets[f"{learner}/mini-imagenet/{_task(5, shots)}"] = Preset(
                learner=learner,
                options={"inner_lr": 0.01 * 5, "inner_steps": 5, "adapt_steps": 10},
                data="folder",
                image_size=84,
                width=32,
                strided=False,
                ways=5,
                shots=shots,
                queries=15,
                tasks=4,
                iterations=60_000,
                meta_lr=1e-3,
                clip_value=10.0,
            )
    return presets


def _imaml() -> dict[str, Preset]:
    """Rajeswaran et al. 2019, from the paper and the official code."""
    return {
        f"imaml/omniglot/{_task(ways, shots)}": Preset(
            learner="imaml",
            options={
                "inner_lr": 0.1,
                "inner_steps": steps,
                "lam": 2.0,
                "adapt_lam": 0.0,
                "cg_steps": 5,
                "mode": "official",
            },
            data="omniglot",
            image_size=28,
            ways=ways,
            shots=shots,
            queries=shots,
            tasks=32,
            iterations=20_000,
            meta_lr=1e-3,
            adam_eps=1e-3,
            note="Rates, tasks and iterations (at least) are stated for 5-way 1-shot only.",
        )
        for ways, steps in ((5, 16), (20, 25))
        for shots in (1, 5)
    }


def _hypertorch() -> dict[str, Preset]:
    """iMAML by the paper's equations, as in hypertorch's examples."""
    return {
        f"imaml/{data}-hypertorch/{_task(5, 1)}": Preset(
            learner="imaml",
            options={
                "inner_lr": 0.1,
                "inner_steps": steps,
                "lam": lam,
                "cg_steps": 5,
                "mode": "paper",
            },
            data=_files(data),
            image_size=size,
            width=width,
            strided=data == "omniglot",
            ways=5,
            shots=1,
            queries=15,
            tasks=16,
            iterations=60_000,
            meta_lr=1e-3,
            note="lambda is the paper's; iterations are not stated.",
        )
        for data, size, width, steps, lam in (
            ("omniglot", 28, 64, 16, 2.0),
            ("mini-imagenet", 84, 32, 10, 0.5),
        )
    }


def _metadock() -> dict[str, Preset]:
    """Chavan et al. 2022, supplement, table 1: stage one (iMAML) and stage two share it."""
    rows = {
        "cifar-fs": (32, 16, {5: (5e-3, 5e-5), 1: (1e-2, 5e-4)}),
        "mini-imagenet": (84, 10, {5: (1e-2, 5e-5), 1: (5e-3, 5e-4)}),
    }
    presets = {}
    for data, (size, steps, rates) in rows.items():
        for shots, (inner_lr, meta_lr) in rates.items():
            common = {
                "inner_lr": inner_lr,
                "inner_steps": steps,
                "cg_steps": 5,
                "mode": "official",
            }
            outer = {
                "data": _files(data),
                "image_size": size,
                "ways": 5,
                "shots": shots,
                "queries": shots,
                "tasks": 4,
                "iterations": 60_000,
                "meta_lr": meta_lr,
                "adam_eps": 1e-3,
            }
            presets[f"imaml/{data}/{_task(5, shots)}"] = Preset(
                learner="imaml",
                options={**common, "lam": 0.5},
                **outer,
                note="The pre-training stage of MetaDOCK.",
            )
            scalars = {"budget": 0.5, "lambda1": 0.5, "lambda2": 0.5, "lambda3": 50.0}
            presets[f"metadock/{data}/{_task(5, shots)}"] = Preset(
                learner="metadock",
                options={**common, **scalars, "lambda4": 1e-4, "total_iterations": 60_000},
                **outer,
                note="lambda4 is 1e-4 in the supplement and 1e-6 in the code. Starts from the "
                "pre-training stage.",
            )
    return presets


def _convex() -> dict[str, Preset]:
    """Heads alone. The report that names them gives no setting: these are the package's own."""
    presets = {}
    for data, size, width, strided in (
        ("omniglot", 28, 64, True),
        ("cifar-fs", 32, 64, True),
        ("mini-imagenet", 84, 32, False),
    ):
        for learner, options in (
            ("convex-maml", {"inner_lr": 0.1, "inner_steps": 5}),
            ("convex-imaml", {"lam": 0.01}),
        ):
            for shots in (1, 5):
                presets[f"{learner}/{data}/{_task(5, shots)}"] = Preset(
                    learner=learner,
                    options=options,
                    data=_files(data),
                    image_size=size,
                    rotations=data == "omniglot",
                    width=width,
                    strided=strided,
                    ways=5,
                    shots=shots,
                    queries=5,
                    tasks=8,
                    iterations=20_000,
                    meta_lr=1e-3,
                    note="No published setting; the inner rate and steps are learn2learn's for "
                    "ANIL, the rest is this package's choice.",
                )
    return presets


def _other_codes() -> dict[str, Preset]:
    """MAML and ANIL as in the codes of learn2learn and of MAML++ (its plain-MAML configuration)."""
    presets = {}
    for data, size, width, strided in (
        ("omniglot", 28, 64, True),
        ("mini-imagenet", 84, 32, False),
    ):
        for shots in (1, 5):
            presets[f"maml/{data}-learn2learn/{_task(5, shots)}"] = Preset(
                learner="maml",
                options={"inner_lr": 0.5, "inner_steps": 1},
                data=_files(data),
                image_size=size,
                width=width,
                strided=strided,
                rotations=data == "omniglot",
                ways=5,
                shots=shots,
                queries=shots,
                tasks=32,
                iterations=60_000,
                meta_lr=3e-3,
                note="learn2learn's example, whose loss is the mean cross-entropy.",
            )
    for data, size, width, strided in (
        ("mini-imagenet", 84, 32, False),
        ("cifar-fs", 32, 64, True),
    ):
        presets[f"anil/{data}-learn2learn/{_task(5, 5)}"] = Preset(
            learner="anil",
            options={"inner_lr": 0.1, "inner_steps": 5},
            data=_files(data),
            image_size=size,
            width=width,
            strided=strided,
            ways=5,
            shots=5,
            queries=5,
            tasks=32,
            iterations=60_000,
            meta_lr=1e-3,
            note="learn2learn's example; its network for CIFAR-FS and its iterations are not "
            "checked.",
        )
    presets[f"maml/mini-imagenet-maml++/{_task(5, 1)}"] = Preset(
        learner="maml",
        options={"inner_lr": 0.01, "inner_steps": 5},
        data="folder",
        image_size=84,
        width=48,
        strided=False,
        ways=5,
        shots=1,
        queries=15,
        tasks=2,
        iterations=50_000,
        meta_lr=1e-3,
        note="100 epochs of 500 iterations. The published accuracy is that of an ensemble of the "
        "three best checkpoints, about 2 points above one.",
    )
    return presets


def _reptile() -> dict[str, Preset]:
    """Nichol et al. 2018, from the official code; support and query images are its train shots."""
    presets = {}
    rows = {
        ("omniglot", 5): (10, 10, 5, 1e-3, 100_000, {1: 5, 5: 5}),
        ("omniglot", 20): (10, 20, 10, 5e-4, 200_000, {1: 10, 5: 10}),
        ("mini-imagenet", 5): (15, 10, 8, 1e-3, 100_000, {1: 5, 5: 15}),
    }
    for (data, ways), (images, batch, steps, rate, iterations, adapt_batch) in rows.items():
        for shots in (1, 5):
            presets[f"reptile/{data}/{_task(ways, shots)}"] = Preset(
                learner="reptile",
                options={
                    "inner_lr": rate,
                    "inner_steps": steps,
                    "inner_batch": batch,
                    "adapt_steps": 50,
                    "adapt_batch": adapt_batch[shots],
                },
                data=_files(data),
                image_size=28 if data == "omniglot" else 84,
                rotations=data == "omniglot",
                width=64 if data == "omniglot" else 32,
                strided=data == "omniglot",
                ways=ways,
                shots=shots,
                queries=images - shots,
                tasks=5,
                iterations=iterations,
                optimizer="sgd",
                meta_lr=1.0,
                schedule="linear",
                note="The source reports transductive and other accuracy: evaluate with "
                "--no-transductive too. Its evaluation classifies one query image a class.",
            )
    return presets


def _cavia() -> dict[str, Preset]:
    """Zintgraf et al. 2019, from the paper and the official code."""
    return {
        f"cavia/mini-imagenet/{_task(5, shots)}": Preset(
            learner="cavia",
            options={"inner_lr": 0.1, "inner_steps": 2, "context": 100, "block": 2},
            data="folder",
            image_size=84,
            width=32,
            strided=False,
            ways=5,
            shots=shots,
            queries=15,
            tasks=tasks,
            iterations=60_000,
            meta_lr=1e-3,
            schedule="staircase",
            clip_value=10.0,
            note="Published for widths 32, 128 and 512. The code's defaults are inner_lr=1.0 and "
            "16 tasks.",
        )
        for shots, tasks in ((1, 4), (5, 2))
    }


def _gems() -> dict[str, Preset]:
    """GEMS 2023, supplement: BMP and MMSUP, and the baselines that they are compared with."""
    presets = {}
    for first in ("cub", "vgg-flower", "fungi"):
        for learner in ("maml", "multi-maml", "bmp", "mmsup"):
            presets[f"{learner}/{first}+aircraft/{_task(5, 1)}"] = Preset(
                learner=learner,
                options={"inner_lr": 0.01, "inner_steps": 5},
                data=f"folder:{first}+folder:aircraft",
                image_size=84,
                width=64,
                strided=False,
                ways=5,
                shots=1,
                queries=15,
                tasks=5,
                iterations=30_000,
                meta_lr=1e-4,
                note="Two folders of images, of these names where the run starts. Image size and "
                "queries are not stated; stride 2 and pooling, which the source names, leave "
                "nothing of 84 pixels: this pools alone.",
            )
    return presets


def _multi_maml() -> dict[str, Preset]:
    """Vuorio et al. 2019, the baseline of MMAML, from its public code; 2, 3 and 5 modes."""
    presets = {}
    sets = ("omniglot", "mini-imagenet", "fc100", "aircraft", "cub")
    for modes in (2, 3, 5):
        for ways, shots, omniglot in ((5, 1, 0.4), (5, 5, 0.4), (20, 1, 0.1)):
            presets[f"multi-maml/mmaml-{modes}-modes/{_task(ways, shots)}"] = Preset(
                learner="multi-maml",
                options={"inner_lr": (omniglot, *[0.01] * (modes - 1)), "inner_steps": 5},
                data="+".join(["omniglot", *(f"folder:{name}" for name in sets[1:modes])]),
                image_size=84,
                ways=ways,
                shots=shots,
                queries=15,
                tasks=4 * modes,
                iterations=80_000,
                meta_lr=1e-3,
                note="Folders of images, of these names where the run starts. The code trains one "
                "data set after the other, 4 tasks a meta-batch (10 on 5-way Omniglot, with one "
                "inner step and 60000 iterations), on a network whose width doubles from 32 to 256 "
                "and whose head sees the spatial mean; it rotates Omniglot's classes and clips "
                "inner gradients at 20.",
            )
    return presets


def _files(data: str) -> str:
    """Where a data set's images are: mini-ImageNet is a folder of yours."""
    return "folder" if data == "mini-imagenet" else data


PRESETS: dict[str, Preset] = {
    **_maml(),
    **_imaml(),
    **_hypertorch(),
    **_metadock(),
    **_convex(),
    **_other_codes(),
    **_reptile(),
    **_cavia(),
    **_gems(),
    **_multi_maml(),
}
