"""Feature-wise linear modulation by a context that each task may have of its own."""

import torch
from torch import Tensor, nn

from metasparse_ext._arguments import (
    require_floating,
    require_like,
    require_place,
    require_shape,
    require_size,
)
from metasparse_ext.nn.linear import Linear
from metasparse_ext.ops._operands import autocast_is_on


class FiLM(nn.Module):
    """Scales and shifts channels: gamma * x + beta, with (gamma, beta) an affine map of a context.

    The context is a buffer of zeros, not a parameter: a learner gives each task its own through
    ``torch.func.functional_call``. At zero gamma and beta are the biases of the map, which
    therefore keeps ``nn.Linear``'s random ones.

    Args:
        channels: C.
        context: K, the length of the context.
        device, dtype: Of the parameters.

    Shapes: x (N, C, H, W) or (T, N, C, H, W); the context (K,) or (T, K).

    Source: Perez et al., "FiLM", AAAI 2018, as used by CAVIA (Zintgraf et al., ICML 2019).
    """

    task_aware = True
    context: Tensor

    def __init__(
        self,
        channels: int,
        context: int = 100,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        require_size("FiLM", "channels", channels)
        require_size("FiLM", "context", context)
        require_place("FiLM", device, dtype)
        super().__init__()
        self.generator = Linear(context, 2 * channels, device=device, dtype=dtype)
        empty = torch.empty(context, device=device, dtype=dtype)
        self.register_buffer("context", empty, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the context to zero; the map of it is a layer that resets itself."""
        nn.init.zeros_(self.context)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.generator.weight
        require_floating("FiLM", "x", x)
        require_like("FiLM", "x", x, "its parameters", weight, dtype=not autocast_is_on(x))
        channels = weight.shape[-2] // 2
        shape = ("N", channels, "H", "W")
        require_shape("FiLM", "x", x, shape, ("T", *shape))
        gamma, beta = (part[..., None, :, None, None] for part in self._affine())
        return gamma * x + beta

    def _affine(self) -> tuple[Tensor, Tensor]:
        """gamma and beta, (C,) or (T, C)."""
        return self.generator(self.context).chunk(2, dim=-1)
