"""Which modules understand a leading task axis."""

from torch import nn

from metasparse_ext._arguments import require_type

# Modules without parameters whose forward treats each image, or each number, alone.
_POINTWISE = (
    nn.Identity, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid,
    nn.Tanh, nn.Softplus,
)  # fmt: skip

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_task_aware(module: nn.Module) -> bool:
    """Whether a module works on (T, N, ...) inputs with parameters that have a leading T.

    True for the layers and networks of ``metasparse_ext.nn``, for pointwise activations, and for an
    ``nn.Sequential`` of such. A class of your own that only composes these sets the class
    attribute ``task_aware = True``; every other module is run through ``torch.func.vmap`` over T.

    Nothing is taken for granted of what was changed: a subclass must declare it anew, and a module
    with hooks, parametrizations or a forward of its own instance, anywhere within, is not.
    """
    require_type("is_task_aware", "module", module, nn.Module, "a module")
    return _declared(module) and not any(map(_changed, module.modules()))


def _declared(module: nn.Module) -> bool:
    kind = type(module)
    if "task_aware" in vars(kind):
        return bool(vars(kind)["task_aware"])
    if kind is nn.Sequential:
        return all(map(_declared, module.children()))
    return kind in _POINTWISE


def _changed(module: nn.Module) -> bool:
    """Whether its class inherited what it declares, or it does something beside its forward."""
    kind = type(module)
    inherited = getattr(kind, "task_aware", False) and "task_aware" not in vars(kind)
    return inherited or "forward" in vars(module) or any(getattr(module, name) for name in _HOOKS)
