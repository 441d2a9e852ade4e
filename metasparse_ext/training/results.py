"""Evaluations of runs: done, kept in the run folder, and shown as a table."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from metasparse_ext.training import atomic, build, metrics
from metasparse_ext.training.evaluation import Evaluation, evaluate
from metasparse_ext.training.run import Run

_SEED = 2_000_003


@dataclass(frozen=True)
class Result:
    """An evaluation of a run, as kept in its folder.

    Attributes:
        setting: Data set, split and kind of task, in words.
        adapt_steps: Gradient steps of adaptation; without meaning where a solver adapts.
        checkpoint: ``best`` or, where no checkpoint met the budget, ``last``.
        iteration: Meta-iterations behind that checkpoint.
        budget: Fraction of kernels asked for, if any.
        seconds: Median seconds of a training iteration, if the run has metrics.
        numbers: The fields of :class:`Evaluation`, without the kernel usage.
    """

    setting: str
    adapt_steps: int
    checkpoint: str
    iteration: int
    budget: float | None
    seconds: float | None
    numbers: Mapping[str, Any]


def evaluate_run(run: Run, *, split: str = "test", **options: Any) -> Result:
    """:func:`measure` a run's best checkpoint on a split, and :func:`keep` the result.

    Raises:
        CheckpointError, DataError: as :func:`measure`.
        OSError: If the result cannot be written.
    """
    result, found = measure(run, split=split, **options)
    keep(run, split, result, found)
    return result


def measure(
    run: Run,
    *,
    tasks: int | None = None,
    split: str = "test",
    transductive: bool | None = None,
    adapt_steps: int | None = None,
    root: str | None = None,
    device: str | None = None,
) -> tuple[Result, Evaluation]:
    """Evaluates a run's best checkpoint on a split.

    Args:
        run: The run.
        tasks, transductive: As in :func:`evaluate`; by default as the run's configuration says.
        split: ``train``, ``val`` or ``test``.
        adapt_steps: Gradient steps of adaptation, if not the run's: sources may take more at test
            time than in training.
        root: Where the data set's files are now, if not where the run found them.
        device: The torch device, if not the run's.

    Raises:
        CheckpointError: If the folder holds no run.
        DataError: If the data cannot be had.
    """
    config = run.config()
    config = config.replace(root=root or config.root, device=device or config.device)
    classes = build.images(config, split)
    learner = build.trained(run, config, classes.shape)
    if adapt_steps is not None:
        learner.adapt_steps = adapt_steps
    found = evaluate(
        learner,
        build.held_out_episodes(config, classes, seed=_SEED),
        tasks=tasks or config.evaluation_tasks,
        transductive=config.transductive if transductive is None else transductive,
        distributions=build.distributions(classes),
    )
    return Result(
        setting=f"{config.ways}-way {config.shots}-shot, {config.data} {split} classes",
        adapt_steps=learner.adapt_steps,
        checkpoint="best" if run.has_best else "last",
        iteration=int(learner.iteration),
        budget=getattr(learner, "budget", None),
        seconds=_seconds(run),
        numbers=found.to_dict(),
    ), found


def keep(run: Run, split: str, result: Result, found: Evaluation) -> None:
    """Writes an evaluation to the run folder.

    Raises:
        OSError: If it cannot be written.
    """
    arrays = {name: values.numpy() for name, values in found.usage.items()}
    atomic.replace(run.usage_path(split), _npz(arrays))
    atomic.replace_text(run.evaluation_path(split), json.dumps(vars(result), indent=2) + "\n")


def export_masks(
    run: Run, path: Path, *, root: str | None = None
) -> dict[str, NDArray[np.float64]]:
    """Writes the masks of a run's best meta-parameters to an ``.npz`` file, as bytes 0 and 1.

    Args:
        run: The run.
        path: The file.
        root: Where the data set's files are now, whose images have the shape that the network is
            for, if not where the run found them.

    Returns:
        The masks by layer name: (O, I), or (O, I, kh, kw) with one entry a weight. Tasks may have
        masks of their own; what they use of the kernels is found by :func:`evaluate_run`.

    Raises:
        CheckpointError: If the folder holds no run.
        DataError: If the data cannot be had.
    """
    config = run.config()
    config = config.replace(root=root or config.root, device="cpu")
    shape = build.images(config, "test").shape
    masks = build.trained(run, config, shape).masks()
    arrays = {name: mask.double().cpu().numpy() for name, mask in masks.items()}
    small = {name: mask.astype(np.uint8) for name, mask in arrays.items()}
    atomic.replace(path, _npz(small))
    return arrays


def kept(run: Run, split: str = "test") -> Result | None:
    """Reads the result that :func:`evaluate_run` kept, if there is one."""
    path = run.evaluation_path(split)
    return Result(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def usage(run: Run, split: str = "test") -> dict[str, NDArray[np.float64]] | None:
    """Reads the fraction of evaluated tasks that used each kernel, (O, I) by layer."""
    path = run.usage_path(split)
    if not path.is_file():
        return None
    with np.load(path) as arrays:
        return dict(arrays)


def table(results: Mapping[str, Result]) -> Table:
    """A rich table, one row a run; the title says what was evaluated and how."""
    numbers = next(iter(results.values())).numbers
    shown = Table(
        title=f"{next(iter(results.values())).setting}, {_manner(numbers)}",
        caption="accuracy with its 95 % interval; multiply-accumulates of one image",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    shown.add_column("", overflow="fold")
    for heading in ("accuracy", "active kernels", "multiply-accumulates", "s/iteration"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for label, result in results.items():
        shown.add_row(label, *_cells(result))
    return shown


def remark(result: Result) -> str:
    """Which checkpoint was evaluated, how it keeps its budget, and its parts, in one sentence."""
    text = f"{result.checkpoint} checkpoint, iteration {result.iteration}"
    if result.adapt_steps:
        text += f", {result.adapt_steps} steps of adaptation"
    for name, score in result.numbers.get("distributions", {}).items():
        text += f"; on {name} {_accuracy(score)}"
    if result.budget is None:
        return text
    achieved = f"{100 * result.numbers['active']:.1f} % of {result.numbers['kernels']:,} kernels"
    return f"{text}; budget {100 * result.budget:g} %, achieved {achieved}"


def _manner(numbers: Mapping[str, Any]) -> str:
    kind = "transductive" if numbers["transductive"] else "not transductive"
    return f"{numbers['tasks']} tasks, {kind}"


def _cells(result: Result) -> tuple[str, str, str, str]:
    numbers = result.numbers
    return (
        _accuracy(numbers),
        f"{100 * numbers['active']:.1f} %",
        f"{numbers['macs'] / 1e6:.2f} M",
        "" if result.seconds is None else f"{result.seconds:.3f}",
    )


def _accuracy(score: Mapping[str, Any]) -> str:
    return f"{100 * score['accuracy']:.2f} ± {100 * score['interval']:.2f} %"


def _seconds(run: Run) -> float | None:
    if not run.metrics_path.is_file():
        return None
    times = [record["seconds"] for record in metrics.read(run.metrics_path) if "seconds" in record]
    return median(times) if times else None


def _npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()
