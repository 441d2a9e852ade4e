"""Puts docstrings into the Markdown of the reference: an extension of Griffe, named in mkdocs.yml.

Parameters that are described together, ``height, width: ...``, get an entry each; the roles and
literal blocks of reStructuredText become Markdown's.
"""

import re
import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))
from site_names import is_public

# An entry of "Args:": its indentation, its names, and its words with the lines that go on.
_TOGETHER = re.compile(r"^( +)(\w+(?:,\s+\w+)+):((?:.*\n?)(?:\1 +.*\n?)*)", re.MULTILINE)
_ROLE = re.compile(r":(?:attr|class|exc|func|meth|mod):`(~?)([\w.\s]+)`")
# Paragraphs that Griffe would take for sections, by their first words.
_PARAGRAPH = re.compile(r"^(Shapes|Solvers|Source): ((?:.*\n?)(?: +.*\n?)*)", re.MULTILINE)
_LITERAL_BLOCK = re.compile(r"::(?=\n\n)")


def parameters_apart(text: str) -> str:
    """A docstring whose parameters have an entry each."""

    def entries(match: re.Match[str]) -> str:
        indent, names, words = match.groups()
        return "".join(f"{indent}{name}:{words.rstrip()}\n" for name in re.split(r",\s+", names))

    before, start, after = text.partition("Args:\n")
    arguments, blank, rest = after.partition("\n\n")
    return before + start + _TOGETHER.sub(entries, arguments).rstrip("\n") + blank + rest


def markdown(text: str) -> str:
    """A docstring whose references are code, and links where the reference has their target."""

    def code(match: re.Match[str]) -> str:
        short, name = match[1], re.sub(r"\s", "", match[2])
        shown = f"`{name.rpartition('.')[2] if short else name}`"
        return f"[{shown}][{name}]" if is_public(name) else shown

    def paragraph(match: re.Match[str]) -> str:
        return f"**{match[1]}.** " + re.sub(r"\n +", "\n", match[2])

    return _LITERAL_BLOCK.sub(":", _PARAGRAPH.sub(paragraph, _ROLE.sub(code, text)))


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(parameters_apart(obj.docstring.value))
