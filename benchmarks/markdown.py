"""Tables in Markdown."""

from collections.abc import Sequence


def markdown(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with its title; the first column to the left, numbers to the right."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    lines = ["| " + " | ".join(row) + " |" for row in (head, rule, *rows)]
    return f"{title}\n\n" + "\n".join(lines) + "\n"
