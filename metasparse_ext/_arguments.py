"""What public functions and constructors ask of their arguments, in one wording.

Every refusal reads "OWNER: expected NAME to be WHAT, got VALUE". A value of another type is a
TypeError; one of the right type that does not serve is a ValueError.
"""

import math
import numbers
from typing import Any, NoReturn, get_args

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64)
_LONGEST = 120


def refuse(
    owner: str, name: str, expected: str, got: str, error: type[Exception] = ValueError
) -> NoReturn:
    """Raises; ``got`` is text, see :func:`shown`."""
    raise error(f"{owner}: expected {name} to be {expected}, got {got}")


def require(holds: bool, owner: str, name: str, expected: str, got: object) -> None:
    """Raises a ValueError unless it holds."""
    if not holds:
        refuse(owner, name, expected, shown(got))


def require_type(
    owner: str, name: str, got: object, kind: type | tuple[type, ...], expected: str
) -> None:
    """Refuses a value of another type; ``expected`` says the kind in words."""
    if not isinstance(got, kind):
        refuse(owner, name, expected, _with_type(got), TypeError)


def require_number(
    owner: str,
    name: str,
    got: object,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
) -> None:
    """Refuses what is not a finite real number, or not in the range asked for."""
    if not isinstance(got, numbers.Real) or isinstance(got, bool):
        refuse(owner, name, "a number", _with_type(got), TypeError)
    number = float(got)
    require(math.isfinite(number), owner, name, "finite", got)
    require(above is None or number > above, owner, name, f"above {above}", got)
    require(least is None or number >= least, owner, name, f"at least {least}", got)
    require(most is None or number <= most, owner, name, f"at most {most}", got)


def require_count(
    owner: str, name: str, got: Any, *, least: int = 0, most: int | None = None
) -> None:
    """Refuses what is not an integer, or not in the range asked for."""
    if not _is_integer(got):
        refuse(owner, name, "an integer", _with_type(got), TypeError)
    require(got >= least, owner, name, f"at least {least}", got)
    require(most is None or got <= most, owner, name, f"at most {most}", got)


def require_flag(owner: str, name: str, got: Any) -> None:
    """Refuses what is not a bool: any other value would count as one, the text "no" as true."""
    require_type(owner, name, got, bool, "True or False")


def require_choice(owner: str, name: str, got: object, choices: Any) -> None:
    """Refuses a value that is not among the choices: a sequence, or a ``Literal`` type."""
    named = get_args(choices) or tuple(choices)
    require(got in named, owner, name, f"one of {', '.join(map(repr, named))}", got)


def require_pair(owner: str, name: str, got: object, *, least: int = 0) -> tuple[int, int]:
    """One integer, or two (vertical, horizontal), as two."""
    pair = got if isinstance(got, (tuple, list)) else (got, got)
    if len(pair) != 2 or not all(map(_is_integer, pair)):
        refuse(owner, name, "one integer or two", _with_type(got), TypeError)
    require(min(pair) >= least, owner, name, f"at least {least}", got)
    return pair[0], pair[1]


def require_tensor(
    owner: str, name: str, got: Any, *, dtypes: tuple[torch.dtype, ...] | None = None
) -> None:
    """Refuses what is no tensor, or one whose values do not lie in one strided block of memory."""
    require_type(owner, name, got, Tensor, "a tensor")
    packing = _packing(got)
    if packing is not None:
        refuse(owner, name, "a dense (strided) tensor", f"a {packing} one", TypeError)
    if dtypes is not None and got.dtype not in dtypes:
        refuse(owner, name, f"of {' or '.join(map(shown, dtypes))}", shown(got.dtype), TypeError)


def shown(value: object) -> str:
    """A value as messages show it: a tensor by its dtype and shape, long text cut short."""
    if isinstance(value, Tensor):
        return f"a tensor of {shown(value.dtype)} and shape {tuple(value.shape)}"
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _with_type(value: object) -> str:
    if value is None or isinstance(value, (Tensor, type)):
        return shown(value)
    return f"{type(value).__name__} {shown(value)}"


def _is_integer(value: object) -> bool:
    """Sizes may be symbols while a program is traced."""
    kinds = (numbers.Integral, torch.SymInt)
    return isinstance(value, kinds) and not isinstance(value, bool)


def _packing(tensor: Tensor) -> str | None:
    """How the values of a tensor lie in memory if that is not by strides."""
    if tensor.is_nested:
        return "nested"
    if tensor.is_quantized:
        return "quantized"
    if tensor.layout != torch.strided:
        return str(tensor.layout).removeprefix("torch.")
    return None
