"""A copy of a network whose weights are tensors, computed of others no more."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from metasparse_ext._arguments import refuse
from metasparse_ext.export.agreement import reason

# What torch.nn.utils calls the tensors that it computes a weight of: behind the weight's name.
_SOURCES = ("_orig", "_mask", "_g", "_u", "_v")


def copied(model: nn.Module) -> nn.Module:
    """The network again, without what a forward has left in its attributes.

    Raises:
        ValueError: If it has parts that cannot be copied.
    """
    try:
        with _Deepcopy():
            return copy.deepcopy(model)
    except Exception as error:
        got = f"{type(model).__name__}: {reason(error)}"
        refuse("export", "the network", "one that copy.deepcopy can copy", got)


class _Deepcopy(TorchFunctionMode):
    """Copies what PyTorch refuses to: results of a forward, which the next one makes again."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            # Its storage is gone with the vmap or the gradient that it is from.
            if is_functorch_wrapped_tensor(tensor):
                return None
            if not tensor.is_leaf:
                return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))


def settle(net: nn.Module) -> None:
    """Makes parameters, in place, of weights that torch.nn.utils computes of others at each call:
    those of parametrizations, and of the hooks that came before them."""
    with torch.no_grad():
        for module in net.modules():
            # Not by remove_parametrizations, which changes the class that the original has too.
            if parametrize.is_parametrized(module):
                names = cast("nn.ModuleDict", module.parametrizations)
                values = {name: getattr(module, name) for name in names}
                module.__class__ = type(module).__bases__[0]
                del module.parametrizations
                _assign(module, values)
            for key, hook in list(module._forward_pre_hooks.items()):
                if type(hook).__module__.startswith("torch.nn.utils."):
                    hook(module, ())
                    name = cast("str", getattr(hook, "name", getattr(hook, "_tensor_name", None)))
                    value = getattr(module, name)
                    del module._forward_pre_hooks[key]
                    for each in (name, *(name + source for source in _SOURCES)):
                        if hasattr(module, each):
                            delattr(module, each)
                    _assign(module, {name: value})


def _assign(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        parameter = nn.Parameter(value.detach().clone(), requires_grad=False)
        module.register_parameter(name, parameter)
