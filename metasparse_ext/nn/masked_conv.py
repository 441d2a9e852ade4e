"""The masked convolution as a layer."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metasparse_ext._arguments import (
    require,
    require_choice,
    require_count,
    require_flag,
    require_like,
    require_pair,
    require_place,
    require_shape,
    require_size,
    require_tensor,
)
from metasparse_ext.nn.masks import FixedMask, require_maker
from metasparse_ext.ops import masked_conv2d
from metasparse_ext.ops._operands import is_cast

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]

_OWNER = "MaskedConv2d"


class MaskedConv2d(nn.Conv2d):
    """An ``nn.Conv2d`` with a mask that switches kernels on and off; pruned ones are skipped.

    Takes ``nn.Conv2d``'s arguments and is one, so initializers and ``isinstance`` checks work as
    usual. It also works on a task axis: images (I, H, W), (N, I, H, W) or (T, N, I, H, W), and
    through ``torch.func.functional_call`` each parameter with or without a leading T.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype: As in ``nn.Conv2d``; padding may be "same" or "valid".
            With groups or dilation no kernel is skipped, see
            :func:`~metasparse_ext.masked_conv2d`.
        mask: Which kernels are active: a tensor of zeros and ones, (O, I) or (O, I, kh, kw), or a
            maker of masks such as :class:`~metasparse_ext.nn.ScoreMask`. All of them by default.

    Attributes:
        masker: The maker of masks, called with the weight at every forward; assign another to
            change it.
        bias_matters: Set to False by a network whose next layer takes the mean of every channel
            away: weights with a task axis are then convolved without the bias, whose gradient is
            zero but for rounding. Without a task axis the bias is always added.

    Example:
        >>> conv = MaskedConv2d(16, 32, 3, padding=1, mask=torch.rand(32, 16) < 0.25)
        >>> conv(torch.randn(5, 16, 28, 28)).shape
        torch.Size([5, 32, 28, 28])
        >>> weights = {"weight": torch.randn(4, 32, 16, 3, 3)}  # four tasks, one shared bias
        >>> torch.func.functional_call(conv, weights, torch.randn(4, 5, 16, 28, 28)).shape
        torch.Size([4, 5, 32, 28, 28])

    Raises:
        TypeError: for an argument of another kind, and for images of another dtype than the
            weight's, except under autocast.
        ValueError: for dilation, groups or a padding mode, and for a mask whose shape does not fit
            the weight, or a module that makes no such masks.
    """

    task_aware = True
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: str | tuple[int, int]
    dilation: tuple[int, int]
    masker: nn.Module
    bias_matters = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        mask: Tensor | nn.Module | None = None,
    ) -> None:
        require_size(_OWNER, "in_channels", in_channels)
        require_size(_OWNER, "out_channels", out_channels)
        require_pair(_OWNER, "kernel_size", kernel_size, least=1)
        require_pair(_OWNER, "stride", stride, least=1)
        if isinstance(padding, str):
            require_choice(_OWNER, "padding", padding, ("same", "valid"))
        else:
            require_pair(_OWNER, "padding", padding)
        require_pair(_OWNER, "dilation", dilation, least=1)
        require_count(_OWNER, "groups", groups, least=1)
        for name, channels in {"in_channels": in_channels, "out_channels": out_channels}.items():
            expected = f"a multiple of groups = {groups}"
            require(channels % groups == 0, _OWNER, name, expected, channels)
        require_choice(_OWNER, "padding_mode", padding_mode, get_args(PaddingMode))
        require_flag(_OWNER, "bias", bias)
        require_place(_OWNER, device, dtype)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            padding_mode=padding_mode,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        if isinstance(mask, nn.Module):
            require_maker(_OWNER, "mask", mask, self.weight)
            self.masker = mask
        else:
            self.masker = self._fixed(mask)

    def _fixed(self, mask: Tensor | None) -> FixedMask:
        if mask is None:
            ones = torch.ones(self.weight.shape[:2], dtype=self.weight.dtype, device="cpu")
            return FixedMask(ones, device=self.weight.device)
        require_tensor(_OWNER, "mask", mask)
        shape = tuple(self.weight.shape)
        require_shape(_OWNER, "mask", mask, shape[:2], shape)
        return FixedMask(mask, device=self.weight.device)

    def reset_parameters(self) -> None:
        """Draws weight and bias as ``nn.Conv2d`` does, and resets the maker of masks."""
        super().reset_parameters()
        reset = getattr(self._modules.get("masker"), "reset_parameters", None)
        if reset is not None:
            reset()

    def forward(self, input: Tensor) -> Tensor:
        # Once each: every `self.weight` is a call of nn.Module.__getattr__.
        x, weight, masker = require_tensor(_OWNER, "input", input), self.weight, self.masker
        differs = x.dtype is not weight.dtype and not is_cast(x, weight)
        require_like(_OWNER, "input", x, "its weight", weight, dtype=differs)
        learned = getattr(masker, "learned", True)
        mask: Tensor | None = self._mask(masker, weight, learned)
        mask = require_tensor(_OWNER, "the masker's result", mask)
        if mask.dim() >= 4:
            weight, mask = _masked_weights(weight, mask, learned)
        bias = self.bias if self.bias_matters or weight.dim() == 4 else None
        padding: int | str | tuple[int, int] = self.padding
        if self.padding_mode != "zeros":
            # Copies of pixels of 16 bits would have their gradients added up in 16 bits.
            narrow = x.itemsize == 2 and is_cast(x, self.weight)
            x, padding = self._extended(x.float() if narrow else x), 0
        return masked_conv2d(
            x, weight, mask, bias, self.stride, padding, self.dilation, self.groups
        )

    @staticmethod
    def _mask(masker: nn.Module, weight: Tensor, learned: bool) -> Tensor:
        # FlopCounterMode's module hooks fail on parameters that autograd.grad differentiates: a
        # maker of masks gets none where the mask does not depend on it.
        if type(masker) is FixedMask:
            return masker.forward(weight)
        return masker(weight if learned else weight.detach())

    def _extended(self, x: Tensor) -> Tensor:
        """The images with the border that the padding mode makes of them."""
        images = x.flatten(0, 1) if x.dim() == 5 else x
        images = F.pad(images, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        return images.unflatten(0, x.shape[:2]) if x.dim() == 5 else images


def _masked_weights(weight: Tensor, mask: Tensor, learned: bool) -> tuple[Tensor, Tensor | None]:
    """A mask with one entry a weight, as the masked weight and the mask of its non-zero kernels.

    A mask that is learned needs the gradient of every weight, those of the skipped kernels too, so
    nothing is skipped. ``requires_grad`` does not tell which it is: it is False under vmap.
    """
    return weight * mask, None if learned else mask.detach().flatten(-2).amax(-1)
