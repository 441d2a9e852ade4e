"""Which modules understand a leading task axis."""

from torch import nn

from metasparse_ext._arguments import require_type

# Modules without parameters whose forward treats each image, or each number, alone.
_POINTWISE = (
    nn.Identity, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid,
    nn.Tanh, nn.Softplus
)  # fmt: skip


def is_task_aware(module: nn.Module) -> bool:
    """Whether a module works on (T, N, ...) inputs with parameters that have a leading T.

    True for the layers and networks of ``metasparse_ext.nn``, for pointwise activations, and for an
    ``nn.Sequential`` of such. A class of your own that only composes these sets the class
    attribute ``task_aware = True``; every other module is run through ``torch.func.vmap`` over T.
    """
    require_type("is_task_aware", "module", module, nn.Module, "a module")
    declared = getattr(module, "task_aware", None)
    if declared is not None:
        return bool(declared)
    if type(module) is nn.Sequential:
        return all(is_task_aware(child) for child in module)
    return isinstance(module, _POINTWISE)
