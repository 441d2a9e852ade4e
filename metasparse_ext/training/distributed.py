"""The processes of a training: each takes a share of the tasks, and may be asked to stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from metasparse_ext._arguments import require
from metasparse_ext.data import TaskBatch

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Workers:
    """The processes of a training, seen from one of them.

    All hold the same learner and draw the same meta-batches; each works on its own tasks, and the
    mean of their gradients, that of the whole meta-batch, is what all of them step with.

    ``DistributedDataParallel`` cannot do that: it averages what a backward pass through the module
    leaves, as it comes, and a meta-gradient comes of none (it is implicit, or of first order, or
    added up over chunks of tasks); it counts every process alike, also with fewer tasks; and of
    buffers it has the first process's, where learners keep means over all tasks.

    Attributes:
        rank: Number of this process.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def require_shares(self, tasks: int) -> None:
        """Raises a ValueError if there are not enough tasks for every process to have one."""
        wanted = f"at least {self.size}, the processes that share them"
        require(tasks >= self.size, "RunConfig", "tasks", wanted, tasks)

    def share(self, batch: TaskBatch) -> TaskBatch:
        """The tasks of a meta-batch that are this process's; some may have one more than others."""
        return batch.tasks(self._own(batch.support.labels.shape[0]))

    def tasks(self, tasks: int) -> int:
        """How many of so many tasks are this process's."""
        own = self._own(tasks)
        return own.stop - own.start

    def _own(self, tasks: int) -> slice:
        return slice(self.rank * tasks // self.size, (self.rank + 1) * tasks // self.size)

    def average(self, tensors: list[Tensor], tasks: int | None = None) -> None:
        """Replaces tensors by their mean over the processes, in one exchange.

        Args:
            tensors: Of one dtype.
            tasks: Of a meta-batch: the mean is that over its tasks. By default every process counts
                as much as another.
        """
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        # In whole numbers: masks and the like stay the zeros and ones that they are.
        flat *= 1 if tasks is None else self.tasks(tasks)
        dist.all_reduce(flat)
        flat /= self.size if tasks is None else tasks
        for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def average_buffers(self, module: nn.Module, tasks: int) -> None:
        """Replaces the floating-point buffers of a module by their means over so many tasks.

        What is the same everywhere stays so: in float64 the sum of float32 numbers is exact.
        """
        if self.size == 1:
            return
        buffers = [b for b in module.buffers() if b.is_floating_point()]
        wide = [buffer.double() for buffer in buffers]
        self.average(wide, tasks)
        for buffer, mean in zip(buffers, wide, strict=True):
            buffer.copy_(mean)

    def average_gradients(self, module: nn.Module, tasks: int) -> None:
        """Replaces the gradients of a module by their mean over the tasks of a meta-batch.

        A parameter that only other processes' tasks reached has a gradient here too, afterwards.
        """
        if self.size == 1:
            return
        parameters = list(module.parameters())
        reached = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32)
        reached = reached.to(parameters[0].device)
        self.average([reached])
        for parameter, share in zip(parameters, reached.tolist(), strict=True):
            if share and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.average([p.grad for p in parameters if p.grad is not None], tasks)

    def mean(self, value: float) -> float:
        """The mean of a number over the processes."""
        if self.size == 1:
            return value
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        shared = torch.tensor(value, dtype=torch.float64, device=device)
        self.average([shared])
        return float(shared)

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in some process."""
        if self.size == 1:
            return flag
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        found = torch.tensor(int(flag), device=device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)


ALONE = Workers()


@contextmanager
def joined(device: str) -> Generator[Workers]:
    """The processes that ``torchrun`` started, or this one alone.

    Each takes the GPU of its LOCAL_RANK: "cuda" means that one from here on.

    Raises:
        ValueError: There are more processes than GPUs, or all were given the same one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    if device.startswith("cuda"):
        _take_own_gpu(device)
    _join("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Workers(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def _join(backend: str) -> None:
    # torchrun may keep one store for all starts: what those that died wrote there, such as where
    # they were to be found, is not for these. Machines count their starts each for itself.
    environment = os.environ
    one_machine = environment.get("LOCAL_WORLD_SIZE") == environment["WORLD_SIZE"]
    if not one_machine or environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        dist.init_process_group(backend)
        return
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://"))
    store = dist.PrefixStore(f"start-{environment['TORCHELASTIC_RESTART_COUNT']}", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)


def _take_own_gpu(device: str) -> None:
    here, own = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    if device != "cuda":
        if here > 1:
            raise ValueError(
                f"device: expected 'cuda' for {here} processes, of which each takes a GPU of its "
                f"own, got {device!r}"
            )
        own = int(device.removeprefix("cuda:"))
    if own >= torch.cuda.device_count():
        raise ValueError(
            f"device: expected a GPU for each of {here} processes, got {torch.cuda.device_count()}"
        )
    torch.cuda.set_device(own)


def first_process() -> bool:
    """Whether this process is the one that reports, before any has been joined."""
    return os.environ.get("RANK", "0") == "0"


def started_again() -> bool:
    """Whether ``torchrun`` started this process in the place of one that died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


class StopRequest:
    """While entered, the first SIGINT or SIGTERM sets ``stop``; a second one acts as usual.

    The training then finishes its iteration, saves and leaves.

    Outside the main thread, where Python delivers no signals, it never stops anything.
    """

    def __init__(self) -> None:
        self.stop = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.stop = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
