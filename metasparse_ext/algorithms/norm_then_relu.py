"""A batch norm and the ReLU behind it as one op, where an ``nn.Sequential`` calls them in turn.

There, and only there, is it known that nobody else sees what the norm returns.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from itertools import zip_longest
from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as modules


class NormThenReLU:
    """What a batch norm that is about to run is to do besides."""

    _wanted = False

    def claim(self) -> bool:
        """Whether the norm that runs is to do the ReLU behind it, and who asks does it."""
        wanted, self._wanted = self._wanted, False
        return wanted

    @contextmanager
    def pairing(self, model: nn.Module) -> Generator[None]:
        """Has the sequences of a model run their norms together with the ReLU behind them."""
        sequences = [m for m in model.modules() if isinstance(m, nn.Sequential)]
        sequences = [m for m in sequences if _runs_as(m, nn.Sequential)]
        try:
            for sequence in sequences:
                sequence.__dict__["forward"] = _Paired(self, sequence)
            yield
        finally:
            for sequence in sequences:
                sequence.__dict__.pop("forward", None)

    def run(self, sequence: nn.Sequential, input: Tensor) -> Tensor:
        """What the sequence computes."""
        layers, done = list(sequence), False
        for layer, behind in zip_longest(layers, layers[1:]):
            if done:  # a ReLU
                done = False
                continue
            self._wanted = pair = _is_pair(layer, behind)
            try:
                input = layer(input)
            finally:
                left, self._wanted = self._wanted, False
            done = pair and not left
        return input


class _Paired:
    """The forward of a sequence meanwhile; that of a copy which is made meanwhile is its own."""

    def __init__(self, pairs: NormThenReLU, sequence: nn.Sequential) -> None:
        self.pairs, self.sequence = pairs, sequence

    def __call__(self, input: Tensor) -> Tensor:
        return self.pairs.run(self.sequence, input)

    def __deepcopy__(self, memo: dict[int, Any]) -> MethodType:
        copied = memo.get(id(self.sequence), self.sequence)
        return MethodType(type(copied).forward, copied)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.sequence, "forward")


def _is_pair(norm: nn.Module, relu: nn.Module | None) -> bool:
    """Whether these are a batch norm of images and a ReLU that nobody watches."""
    if not (_runs_as(norm, nn.BatchNorm2d) and _runs_as(relu, nn.ReLU)):
        return False
    hooks = (modules._global_forward_hooks, modules._global_forward_pre_hooks)
    own = [(m._forward_hooks, m._forward_pre_hooks) for m in (norm, relu) if m is not None]
    return not any(map(any, (hooks, *own)))


# What a call of a module goes through.
_STEPS = ("__call__", "_call_impl", "forward", "_check_input_dim")


def _runs_as(layer: nn.Module | None, kind: type[nn.Module]) -> bool:
    """Whether a module runs as those of its kind do."""
    if not isinstance(layer, kind):
        return False
    stock = all(getattr(type(layer), step, None) is getattr(kind, step, None) for step in _STEPS)
    return stock and not any(step in vars(layer) for step in _STEPS)
