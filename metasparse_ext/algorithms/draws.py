"""The same random numbers twice, as for the dropout of a forward that is computed again."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from metasparse_ext.ops._operands import is_readable


def remembered(tensor: Tensor) -> Callable[[], AbstractContextManager[None]]:
    """A context that draws, on the CPU and the tensor's device, what is drawn after this call.

    Afterwards the generators go on from where they were. Inside a captured meta-step a device's
    state cannot be read, and its numbers are new ones.
    """
    host, device = torch.get_rng_state(), tensor.device
    known = [device] if device.type != "cpu" and is_readable(tensor) else []
    states = [torch.get_device_module(each).get_rng_state(each) for each in known]

    @contextmanager
    def again() -> Generator[None]:
        kind = device.type if known else "cuda"
        with torch.random.fork_rng([each.index or 0 for each in known], device_type=kind):
            torch.set_rng_state(host)
            for each, state in zip(known, states, strict=True):
                torch.get_device_module(each).set_rng_state(state, each)
            yield

    return again
