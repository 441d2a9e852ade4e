"""Who else is told of a training: several reporters at once, TensorBoard, Weights & Biases."""

from __future__ import annotations

import importlib
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

from metasparse_ext import _atomic as atomic
from metasparse_ext._arguments import require_choice, require_type
from metasparse_ext._entries import blame
from metasparse_ext.training import metrics
from metasparse_ext.training.config import RunConfig
from metasparse_ext.training.metrics import Reporter
from metasparse_ext.training.progress import Lines
from metasparse_ext.training.run import Run

# What a trainer may be told of its reporters.
Told = Reporter | str | Sequence[Reporter | str] | None

logger = logging.getLogger("metasparse_ext")


class Reporters:
    """Several reporters as one.

    One that raises is named in a warning and told no more, and training goes on: what it shows is a
    copy of the run's metrics, which are whole without it. A reporter with a method ``close`` has
    that called when training ends.
    """

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self._reporters = list(reporters)

    @classmethod
    def of(cls, owner: str, reporter: Told, run: Run, *, first: bool = True) -> Self:
        """One reporter, several, or none, that came as an argument of that name.

        Args:
            owner: Who was given it.
            reporter: Those, or their names in :data:`REPORTERS`.
            run: Whose training they are told of.
            first: Whether this process reports, of several; in others names stand for nothing.

        Raises:
            ImportError: If a package is not installed that one of a name needs.
            TypeError: If it is anything else.
            ValueError: If there is no reporter of a name.
        """
        several = reporter if isinstance(reporter, (list, tuple)) else [reporter]
        told: list[Any] = []
        for each in [] if reporter is None else several:
            if isinstance(each, str):
                require_choice(owner, "reporter", each, REPORTERS)
                told += [REPORTERS[each](run)] if first else []
                continue
            wanted = "None, a Reporter (start, step, validation), its name, or a list of them"
            require_type(owner, "reporter", each, Reporter, wanted)
            told.append(each)
        return cls(told)

    def start(self, config: RunConfig, iteration: int) -> None:
        """Tells all."""
        self._tell("start", config, iteration)

    def step(self, record: Mapping[str, Any], done: float) -> None:
        """Tells all."""
        self._tell("step", record, done)

    def validation(self, record: Mapping[str, Any], best: bool) -> None:
        """Tells all."""
        self._tell("validation", record, best)

    def close(self) -> None:
        """Closes those that can be."""
        self._tell("close")

    def _tell(self, method: str, *said: Any) -> None:
        for reporter in tuple(self._reporters):
            try:
                if method != "close" or hasattr(reporter, "close"):
                    getattr(reporter, method)(*said)
            except Exception as error:  # whatever a service or a disk may raise
                self._reporters.remove(reporter)
                logger.warning(
                    "reporter %s failed and is told no more, training goes on: %s",
                    type(reporter).__name__,
                    blame(error),
                )


class TensorBoard:
    """Writes the numbers of a run for TensorBoard, to the folder ``tensorboard`` of the run.

    ``train/NAME`` are those of training records, ``validation/NAME`` of validations. What was
    written after the checkpoint that a run goes on from is hidden, and written again.

    Args:
        run: The run.

    Raises:
        ImportError: If the package is not installed: saying what to install.
    """

    def __init__(self, run: Run) -> None:
        require_type("TensorBoard", "run", run, Run, "a Run")
        _imported("tensorboard")
        self._folder = run.folder / "tensorboard"

    def start(self, config: RunConfig, iteration: int) -> None:
        """Opens a file of events, with the configuration as its text."""
        from torch.utils.tensorboard import SummaryWriter  # takes a second, and needs the package

        self._writer = SummaryWriter(str(self._folder), purge_step=iteration + 1)
        # indented, a block of code to TensorBoard
        text = "\n".join(f"    {line}" for line in config.to_json().splitlines())
        self._writer.add_text("config", text, iteration)

    def step(self, record: Mapping[str, Any], done: float) -> None:
        """Writes a training record."""
        self._write("train", record)

    def validation(self, record: Mapping[str, Any], best: bool) -> None:
        """Writes a validation record."""
        self._write("validation", record)
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()

    def _write(self, kind: str, record: Mapping[str, Any]) -> None:
        for name, value in numbers(record):
            self._writer.add_scalar(f"{kind}/{name}", value, record["iteration"])


class WandB:
    """Sends the numbers of a run to Weights & Biases, or with ``WANDB_MODE=offline`` keeps them.

    The project is ``metasparse``, or that of ``WANDB_PROJECT``, and the run is called as its folder
    is. ``wandb-id`` in the folder names it there, so that a run that goes on goes on there too.

    Args:
        run: The run.

    Raises:
        ImportError: If the package is not installed: saying what to install.
    """

    def __init__(self, run: Run) -> None:
        require_type("WandB", "run", run, Run, "a Run")
        self._wandb = _imported("wandb")
        self._folder = run.folder

    def start(self, config: RunConfig, iteration: int) -> None:
        """Begins a run there, or goes on with it."""
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "metasparse"),
            name=self._folder.name,
            id=self._id(iteration),
            resume="allow",
            dir=str(self._folder),
            config=config.to_dict(),
        )
        # Its own steps only grow; those of a run that goes on from a checkpoint do not.
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")

    def step(self, record: Mapping[str, Any], done: float) -> None:
        """Sends a training record."""
        self._send("train", record)

    def validation(self, record: Mapping[str, Any], best: bool) -> None:
        """Sends a validation record; that of the best checkpoint is the run's summary."""
        self._send("validation", record)
        if best:
            named = {f"best/{name}": value for name, value in numbers(record)}
            self._run.summary.update({"best/iteration": record["iteration"], **named})

    def close(self) -> None:
        """Ends the run there."""
        self._run.finish()

    def _send(self, kind: str, record: Mapping[str, Any]) -> None:
        named = {f"{kind}/{name}": value for name, value in numbers(record)}
        self._run.log({"iteration": record["iteration"], **named})

    def _id(self, iteration: int) -> str:
        path = self._folder / "wandb-id"
        if not iteration or not path.is_file():
            atomic.replace_text(path, uuid.uuid4().hex)
        return path.read_text(encoding="utf-8")


#: By name, each made of a run: what is printed, and what the command line's ``--report`` takes.
SERVICES: dict[str, Callable[[Run], Reporter]] = {"tensorboard": TensorBoard, "wandb": WandB}
REPORTERS: dict[str, Callable[[Run], Reporter]] = {"lines": lambda _: Lines(), **SERVICES}


def numbers(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Names and values of a record's numbers but the iteration; nested ones as ``OUTER/INNER``."""
    for name, value in metrics.flat(record).items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and name != "iteration":
            yield name, value


def _imported(name: str) -> Any:
    """A package that a reporter needs."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        wanted = f"--report {name} needs {name}: pip install {name}"
        raise ImportError(f"{wanted} ({error})") from error
