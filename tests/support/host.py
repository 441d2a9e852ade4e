"""What a CUDA graph forbids, found without a GPU, and a graph that is none."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metasparse_ext import _capture


class HostLooked(AssertionError):
    """An operation that would make the host wait for the device, or copy from one to the other."""


class NothingOnTheHost(TorchDispatchMode):
    """Refuses operations whose result, or its shape, the host has to know, and host tensors.

    PyTorch tags the first two kinds: ``item()`` and ``bool()`` (data_dependent_output),
    ``nonzero``, ``unique`` and ``masked_select`` (dynamic_output_shape). The third is a tensor on
    another device than ``device``, such as ``torch.tensor`` makes from a number (lift_fresh). On
    the meta device nothing has a value, so there no code can look at one unseen by this mode.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if name == "aten::lift_fresh" or self._reads(func, name, args, kwargs or {}):
            raise HostLooked(str(func))
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, torch.Tensor) and value.device.type != self.device:
                raise HostLooked(f"{func} of a tensor on {value.device}")
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _reads(func, name, args, kwargs) -> bool:
        if name in ("aten::index", "aten::index_put", "aten::index_put_"):
            indices = [index for index in args[1] if index is not None]
            return any(index.dtype in (torch.bool, torch.uint8) for index in indices)
        if name == "aten::repeat_interleave":
            return kwargs.get("output_size") is None
        return bool(
            {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & {*func.tags}
        )


class FakeGraph:
    """Stands in for a CUDA graph: it runs nothing when it records, and the step at every replay.

    Like that of a graph, a replay writes its results where the one before wrote them.
    """

    stops: tuple[str, ...] = ()
    recorded = False

    def __init__(self, device):
        self.rehearsals, self.results = [], None

    def rehearse(self, step, *, watched):
        self.rehearsals.append(watched)
        return step(), list(self.stops) if watched else []

    def record(self, step):
        self.step, self.recorded = step, True

    def replay(self):
        with _capture.unobserved():
            results = self.step()
        if self.results is None:
            self.results = results
        else:
            pairs = zip(_capture._tensors(self.results), _capture._tensors(results), strict=True)
            for old, new in pairs:
                old.copy_(new)
        return self.results
