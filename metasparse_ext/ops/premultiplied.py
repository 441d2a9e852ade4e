"""PyTorch's own convolutions with the products of weights and masks made before or after them.

They know no masks. In PyTorch's operators such a product is three launches (a product, a test, a
fill: what is pruned may hold NaN), in a kernel it is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

Multiply = Callable[[Tensor, Tensor], Tensor]

#: Places of weights and their masks among the arguments of an op.
_WEIGHTS: Mapping[str, Sequence[tuple[int, int]]] = {
    "masked_conv": ((1, 2),),
    "masked_conv_input_grad": ((1, 2),),
    "masked_conv_pair": ((1, 2), (4, 5)),
    "masked_conv_input_grad_pair": ((1, 2), (4, 5)),
}
#: The place of the mask that the result of an op is multiplied by.
_RESULT: Mapping[str, int] = {"masked_conv_weight_grad": 2, "masked_conv_weight_grad_pair": 4}


def premultiplied(
    op: str, dense: Callable[..., Any], args: tuple[Any, ...], multiply: Multiply
) -> Any:
    """What an op returns, by PyTorch's operators on weights that have their masks in them.

    Args:
        op: Any op; one that has no masks is called as it is.
        dense: It, by PyTorch's operators.
        args: Its arguments.
        multiply: weight (T, O, I, kh, kw) * mask (T, O, I), 0 where the mask is 0.
    """
    given = list(args)
    for weight, mask in _WEIGHTS.get(op, ()):
        if given[mask] is not None:
            given[weight], given[mask] = multiply(given[weight], given[mask]), None
    place = _RESULT.get(op)
    if place is None or given[place] is None:
        return dense(*given)
    mask, given[place] = given[place], None
    return multiply(dense(*given), mask)
