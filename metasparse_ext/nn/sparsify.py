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

# Where a module keeps its hooks.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def sparsify(
    model: nn.Module,
    masker: Callable[[Tensor], nn.Module] | None = None,
    *,
    inplace: bool = False,
    keep_unsupported: bool = False,
) -> nn.Module:
    """Turns every ``nn.Conv2d`` of a model into a :class:`~metasparse_ext.nn.MaskedConv2d`.

    Hooks stay, and weights and biases stay the same parameters (of the copy, unless in place), so
    the model computes what it did until a mask prunes something. Layers that are masked already get
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
    return _replace(model, masker, {})


def _refusal(conv: nn.Conv2d) -> str | None:
    if isinstance(conv, MaskedConv2d):
        return None
    if type(conv) is not nn.Conv2d:
        return f"it is a {type(conv).__name__}, whose forward may do more than a convolution"
    if parametrize.is_parametrized(conv):
        return "its parameters are parametrized"
    if hasattr(conv, "bias_mask"):
        return "its bias is pruned; make that permanent with torch.nn.utils.prune.remove"
    if "weight" not in conv._parameters and not hasattr(conv, "weight_mask"):
        return "its weight is no parameter of its own, as under weight or spectral normalization"
    return None


def _replace(
    module: nn.Module,
    masker: Callable[[Tensor], nn.Module] | None,
    done: dict[nn.Module, nn.Module],
) -> nn.Module:
    """The masked form of a module; one that appears in several places is converted once."""
    if module not in done:
        done[module] = module
        if isinstance(module, MaskedConv2d):
            if masker is not None:
                module.masker = _made(masker, module.weight)
        elif isinstance(module, nn.Conv2d) and _refusal(module) is None:
            done[module] = _masked(module, masker)
        else:
            # Not named_children(), which leaves out the second name of a shared module.
            for name, child in module._modules.items():
                if child is not None:
                    module._modules[name] = _replace(child, masker, done)
    return done[module]


def _masked(conv: nn.Conv2d, masker: Callable[[Tensor], nn.Module] | None) -> MaskedConv2d:
    pruned = hasattr(conv, "weight_mask")
    weight = cast("nn.Parameter", conv.weight_orig if pruned else conv.weight)
    masked = MaskedConv2d(
        conv.in_channels,
        conv.out_channels,
        cast("tuple[int, int]", conv.kernel_size),
        cast("tuple[int, int]", conv.stride),
        cast("tuple[int, int] | str", conv.padding),
        cast("tuple[int, int]", conv.dilation),
        conv.groups,
        padding_mode=conv.padding_mode,
        bias=conv.bias is not None,
        device="meta",
        mask=_made(masker, weight) if masker else None,
    )
    masked.weight, masked.bias = weight, conv.bias
    if masker is None:
        masked.masker = masked._fixed(
            _by_kernel(cast("Tensor", conv.weight_mask)) if pruned else None
        )
    for name in _HOOKS:
        hooks = getattr(conv, name)
        kept = {k: h for k, h in hooks.items() if not isinstance(h, prune.BasePruningMethod)}
        getattr(masked, name).update(kept)
    masked._is_full_backward_hook = conv._is_full_backward_hook
    return masked.train(conv.training)


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
