"""JSON that anyone may have written: whatever is wrong with it is a ValueError that says so."""

import json
from typing import Any


def parse(text: str | bytes) -> Any:
    """The value of a JSON text; bytes are UTF-8.

    Raises:
        ValueError: If it is not JSON, or nested deeper than can be read.
    """
    try:
        # Of bytes, json.loads would guess the encoding by their zeros.
        return json.loads(text.decode() if isinstance(text, bytes) else text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from error
