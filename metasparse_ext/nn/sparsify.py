"""From any model to a masked one."""

import copy
import warnings
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize, prune

from metasparse_ext._arguments import refuse, require_callable, require_flag, require_type, shown
from metasparse_ext.nn.masked_conv import MaskedConv2d
from metasparse_ext.nn.masks import require_maker


def sparsify(
    model: nn.Module,
    masker: Callable[[Tensor], nn.Module] | None = None,
    *,
    inplace: bool = False,
    keep_unsupported: bool = False,
) -> nn.Module:
    """Turns every ``nn.Conv2d`` of a model into a :class:`~metasparse_ext.nn.MaskedConv2d`.

    A convolution stays the object that it was (of the copy, unless in place), with its parameters,
    hooks and whatever else it carries, and becomes one of the other class, so the model computes
    what it did until a mask prunes something. Layers that are masked already get
    the new masker, if one is given, and else stay as they are. A convolution whose weight is pruned
    by ``torch.nn.utils.prune`` counts as masked: without ``masker`` its mask becomes a
    :class:`~metasparse_ext.nn.FixedMask`, with one entry a kernel if it prunes whole kernels, and
    the weight that it had before stays under it.

    Args:
        model: Any module; a lone ``nn.Conv2d`` too.
        masker: Builds the module that makes the masks of a layer, from its weight; for example
            ``ScoreMask.like`` or ``lambda weight: TopKMask(0.5)``. All kernels active by default.
        inplace: Change the model itself instead of a deep copy.
        keep_unsupported: Leave convolutions that cannot be masked (parametrized, lazy) as they are
            and warn, naming them, instead of raising.

    Returns:
        The masked model. A warning names the convolutions of other kinds, transposed ones and those
        of one or three dimensions, which stay as they are.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1))
        >>> sparsify(model)[2]
        MaskedConv2d(
          8, 8, kernel_size=(1, 1), stride=(1, 1)
          (masker): FixedMask((8, 8), 100.0% active)
        )

    Raises:
        TypeError: if an argument is of another kind, or ``masker`` makes no maker of masks.
        ValueError: naming every convolution that cannot be masked and why.
    """
    require_type("sparsify", "model", model, nn.Module, "a module")
    if masker is not None:
        require_callable("sparsify", "masker", masker, "a function of a weight, or None")
    require_flag("sparsify", "inplace", inplace)
    require_flag("sparsify", "keep_unsupported", keep_unsupported)
    convolutions = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)
    }
    reasons = {name: reason for name, conv in convolutions.items() if (reason := _refusal(conv))}
    if reasons:
        listed = "; ".join(f"{name or 'the model'}: {why}" for name, why in reasons.items())
        if not keep_unsupported:
            raise ValueError(
                f"sparsify: these convolutions cannot be masked: {listed} "
                "(keep_unsupported=True leaves them dense)"
            )
        warnings.warn(f"sparsify left these convolutions dense: {listed}", stacklevel=2)
    others = [
        f"{name or 'the model'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if isinstance(module, _ConvNd) and not isinstance(module, nn.Conv2d)
    ]
    if others:
        left = f"sparsify masks nn.Conv2d alone, and left as they are: {', '.join(others)}"
        warnings.warn(left, stacklevel=2)
    if not inplace:
        model = copy.deepcopy(model, _computed(model))
    for module in list(model.modules()):
        if isinstance(module, MaskedConv2d):
            if masker is not None:
                module.masker = _made(masker, module.weight)
        elif isinstance(module, nn.Conv2d) and _refusal(module) is None:
            _mask(module, masker)
    return model


def _refusal(conv: nn.Conv2d) -> str | None:
    if isinstance(conv, MaskedConv2d):
        return None
    if type(conv) is not nn.Conv2d:
        return f"it is a {type(conv).__name__}, whose forward may do more than a convolution"
    if "forward" in vars(conv):
        return "its forward was replaced by another, which may do more than a convolution"
    if parametrize.is_parametrized(conv):
        return "its parameters are parametrized"
    if hasattr(conv, "bias_mask"):
        return "its bias is pruned; make that permanent with torch.nn.utils.prune.remove"
    if "weight" not in conv._parameters and not hasattr(conv, "weight_mask"):
        return "its weight is no parameter of its own, as under weight or spectral normalization"
    return None


def _mask(conv: nn.Conv2d, masker: Callable[[Tensor], nn.Module] | None) -> None:
    """Makes a convolution a masked one; a mask of ``torch.nn.utils.prune`` becomes its own."""
    mask = _unpruned(conv) if hasattr(conv, "weight_mask") else None
    maker = None if masker is None else _made(masker, conv.weight)
    # As torch parametrizes: who knows the module by this object knows the masked one.
    conv.__class__ = MaskedConv2d
    masked = cast("MaskedConv2d", conv)
    masked.masker = maker or masked._fixed(mask)
    masked.masker.train(masked.training)
    for option in ("stride", "padding", "dilation"):  # (2,) is PyTorch's for (2, 2)
        value = getattr(masked, option)
        if isinstance(value, tuple) and len(value) == 1:
            setattr(masked, option, value * 2)


def _unpruned(conv: nn.Conv2d) -> Tensor:
    """Gives a pruned convolution the weight that it had before, and returns its mask."""
    mask = cast("Tensor", conv._buffers.pop("weight_mask"))
    del conv.weight
    own = {"weight": conv._parameters.pop("weight_orig"), **conv._parameters}
    conv._parameters.clear()
    conv._parameters.update(own)
    hooks = conv._forward_pre_hooks
    for key in [k for k, hook in hooks.items() if isinstance(hook, prune.BasePruningMethod)]:
        del hooks[key]
    return _by_kernel(mask)


def _made(masker: Callable[[Tensor], nn.Module], weight: Tensor) -> nn.Module:
    """The maker of masks of one layer."""
    maker = masker(weight)
    if not isinstance(maker, nn.Module):
        expected = "a function of a weight to a maker of masks"
        refuse("sparsify", "masker", expected, f"one to {shown(maker)}", TypeError)
    require_maker("sparsify", "masker", maker, weight)
    return maker


def _by_kernel(mask: Tensor) -> Tensor:
    """The mask (O, I, kh, kw) as one entry a kernel, (O, I), if it keeps or prunes whole ones."""
    whole = mask.flatten(2).amax(2)
    return whole if torch.equal(whole[..., None, None].expand_as(mask), mask) else mask


def _computed(model: nn.Module) -> dict[int, Tensor]:
    """Copies, by ``id``, of tensors that hooks computed from parameters: deepcopy refuses them."""
    attributes = (value for module in model.modules() for value in vars(module).values())
    return {
        id(value): value.detach().clone()
        for value in attributes
        if isinstance(value, Tensor) and not value.is_leaf
    }
