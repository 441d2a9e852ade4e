"""What public functions and constructors ask of their arguments, in one wording.

Every refusal reads "OWNER: expected NAME to be WHAT, got VALUE". A value of another type is a
TypeError; one of the right type that does not serve is a ValueError.
"""

import math
import numbers
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, get_args

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

FLOATS = (torch.float32, torch.float64)
NARROW_FLOATS = (torch.bfloat16, torch.float16)
#: The most that sizes and counts of steps may be.
LARGEST = 2**31 - 1
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
        refuse(owner, name, expected, typed(got), TypeError)


def require_number(
    owner: str,
    name: str,
    got: object,
    *,
    above: float | None = None,
    below: float | None = None,
    least: float | None = None,
    most: float | None = None,
    finite: bool = True,
) -> None:
    """Refuses what is not a real number, or not finite, or not in the range asked for."""
    # A number may be a symbol while a program is traced.
    kinds = (float, numbers.Real, torch.SymFloat, torch.SymInt)
    if not isinstance(got, kinds) or isinstance(got, bool):
        refuse(owner, name, "a number", typed(got), TypeError)
    try:
        number = float(got)
    except OverflowError:
        number = math.inf
    # Comparisons, which a symbol knows: math.isfinite is no part of a traced program.
    require(not finite or -math.inf < number < math.inf, owner, name, "finite", got)
    if above is not None and not number > above:
        refuse(owner, name, f"above {above}", shown(got))
    if below is not None and not number < below:
        refuse(owner, name, f"below {below}", shown(got))
    if least is not None and not number >= least:
        refuse(owner, name, f"at least {least}", shown(got))
    if most is not None and not number <= most:
        refuse(owner, name, f"at most {most}", shown(got))


def require_count(
    owner: str, name: str, got: Any, *, least: int = 0, most: int | None = None
) -> None:
    """Refuses what is not an integer, or not in the range asked for."""
    if not _is_integer(got):
        refuse(owner, name, "an integer", typed(got), TypeError)
    if got < least:
        refuse(owner, name, f"at least {least}", shown(got))
    if most is not None and got > most:
        refuse(owner, name, f"at most {most}", shown(got))


def require_size(owner: str, name: str, got: Any) -> None:
    """Refuses what cannot be the size of an axis: an integer from 1."""
    require_count(owner, name, got, least=1, most=LARGEST)


def require_flag(owner: str, name: str, got: Any) -> None:
    """Refuses what is not a bool: any other value would count as one, the text "no" as true."""
    require_type(owner, name, got, bool, "True or False")


def require_text(owner: str, name: str, got: Any, *, empty: bool = True) -> None:
    """Refuses what is no text, or has a NUL, which no file and no name can have."""
    require_type(owner, name, got, str, "text")
    require(empty or bool(got), owner, name, "text that is not empty", got)
    require("\0" not in got, owner, name, "text without NUL", got)


def require_path(owner: str, name: str, got: Any) -> Path:
    """The path that is meant; empty text would be the present folder."""
    require_type(owner, name, got, (str, Path), "a path")
    require_text(owner, name, str(got), empty=False)
    return Path(got)


def require_mapping(owner: str, name: str, got: Any) -> None:
    """Refuses what is no mapping from names to values."""
    require_type(owner, name, got, Mapping, "a mapping from names to values")
    for key in got:
        require_type(owner, f"each key of {name}", key, str, "text")


def require_choice(owner: str, name: str, got: object, choices: Any) -> None:
    """Refuses a value that is not among the choices: a sequence, or a ``Literal`` type."""
    named = choices if type(choices) is tuple else get_args(choices) or tuple(choices)
    # By type too: 1 equals True, and an array is equal to nothing in particular.
    for choice in named:
        if isinstance(got, type(choice)) and got == choice:
            break
    else:
        other = not isinstance(got, tuple(map(type, named)))
        shows, error = (typed(got), TypeError) if other else (shown(got), ValueError)
        refuse(owner, name, f"one of {', '.join(map(repr, named))}", shows, error)


def require_choices(owner: str, name: str, got: Any, choices: Any) -> None:
    """Refuses what is no tuple, list or set of some of the choices; text would be its letters."""
    expected = f"some of {', '.join(map(repr, get_args(choices) or choices))}"
    require_type(owner, name, got, (tuple, list, set, frozenset), expected)
    for one in got:
        require_choice(owner, f"each of {name}", one, choices)


def require_pair(owner: str, name: str, got: Any, *, least: int = 0) -> tuple[int, int]:
    """One integer, or two (vertical, horizontal), as two."""
    pair = got if isinstance(got, (tuple, list)) else (got, got)
    if len(pair) != 2 or not (_is_integer(pair[0]) and _is_integer(pair[1])):
        refuse(owner, name, "one integer or two", typed(got), TypeError)
    first, second = pair
    if first < least or second < least:
        refuse(owner, name, f"at least {least}", shown(got))
    if first > LARGEST or second > LARGEST:
        refuse(owner, name, f"at most {LARGEST}", shown(got))
    return first, second


def require_callable(owner: str, name: str, got: object, expected: str = "a function") -> None:
    """Refuses what cannot be called; ``expected`` says what it is called with."""
    if not callable(got):
        refuse(owner, name, expected, typed(got), TypeError)


def require_place(owner: str, device: Any, dtype: Any) -> None:
    """Refuses a device or a dtype that parameters cannot have; None is torch's default."""
    kinds = (torch.device, str, int)
    if device is not None:
        if not isinstance(device, kinds) or isinstance(device, bool):
            refuse(owner, "device", "a device or None", typed(device), TypeError)
        try:
            torch.device(device)
        except (RuntimeError, OverflowError, ValueError):
            refuse(owner, "device", "a device or None", shown(device))
    if dtype is not None:
        require_type(owner, "dtype", dtype, torch.dtype, "a floating dtype or None")
        require(dtype.is_floating_point, owner, "dtype", "a floating dtype or None", dtype)


def require_tensor(
    owner: str, name: str, got: Any, *, dtypes: tuple[torch.dtype, ...] | None = None
) -> Tensor:
    """Refuses what is no tensor, or one whose values do not lie in one strided block of memory."""
    require_type(owner, name, got, Tensor, "a tensor")
    packing = _packing(got)
    if packing is not None:
        refuse(owner, name, "a dense (strided) tensor", f"a {packing} one", TypeError)
    if dtypes is not None and got.dtype not in dtypes:
        refuse(owner, name, f"of {_listed(dtypes, shown)}", shown(got.dtype), TypeError)
    return got


def require_floating(owner: str, name: str, got: Any) -> None:
    """Refuses what is no dense tensor of a real floating dtype that can be computed with."""
    require_tensor(owner, name, got)
    if not got.is_floating_point():
        refuse(owner, name, "of a floating dtype", shown(got.dtype), TypeError)
    if got.itemsize < 2:
        refuse(owner, name, "of 16 bits a number, or more", shown(got.dtype), TypeError)


def require_like(
    owner: str, name: str, got: Tensor, other_name: str, other: Tensor, *, dtype: bool = True
) -> None:
    """Refuses a tensor on another device, or of another dtype, than that of ``other_name``."""
    if got.device != other.device:
        refuse(owner, name, f"on {other.device} like {other_name}", str(got.device))
    if dtype and got.dtype != other.dtype:
        expected = f"of {shown(other.dtype)} like {other_name}"
        refuse(owner, name, expected, shown(got.dtype), TypeError)


def require_shape(owner: str, name: str, got: Tensor, *shapes: tuple[Any, ...]) -> None:
    """Refuses a tensor of none of the shapes, in which a letter stands for any size."""
    size = got.shape
    if not any(len(shape) == len(size) and all(map(_fits, shape, size)) for shape in shapes):
        refuse(owner, name, f"of shape {_listed(shapes, _in_letters)}", str(tuple(size)))


def shown(value: object) -> str:
    """A value as messages show it, in one line: tensors by dtype and shape, long text cut short."""
    if isinstance(value, Tensor):
        return f"a tensor of {shown(value.dtype)} and shape {tuple(value.shape)}"
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    text = repr(tree_map_only(Tensor, lambda tensor: _Words(shown(tensor)), value))
    text = " ".join(text.split()) if "\n" in text else text
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


class _Words(str):
    """Text that stands in a representation as it is."""

    __slots__ = ()
    __repr__ = str.__str__


def typed(value: object) -> str:
    """A value with its type, as messages about types show it."""
    if value is None or isinstance(value, (Tensor, type)):
        return shown(value)
    return f"{type(value).__name__} {shown(value)}"


def _listed(values: tuple[Any, ...], show: Callable[[Any], str]) -> str:
    *most, last = map(show, values)
    return f"{', '.join(most)} or {last}" if most else last


def _fits(wanted: int | str, size: int) -> bool:
    return isinstance(wanted, str) or wanted == size


def _in_letters(shape: tuple[Any, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def _is_integer(value: object) -> bool:
    """Sizes may be symbols while a program is traced."""
    if type(value) is int:  # asking an abstract class takes ten times as long
        return True
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
