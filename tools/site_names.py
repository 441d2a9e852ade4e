"""The public names of the package, read from its sources."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "metasparse_ext"
PARTS = ("algorithms", "data", "nn", "implicit", "training", "export")
#: By the file of the page of the reference that has it.
MODULES = {PACKAGE: PACKAGE, **{part: f"{PACKAGE}.{part}" for part in PARTS}}


@cache
def public_names(module: str) -> tuple[str, ...]:
    """The functions, classes and values in ``__all__`` of a module; no modules."""
    path = ROOT.joinpath(*module.split(".")) / "__init__.py"
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            names = ast.literal_eval(statement.value)
            return tuple(name for name in names if name not in (*PARTS, "presets"))
    raise LookupError(f"{path}: expected __all__ to be a list of names, got none")


def is_public(name: str) -> bool:
    """Whether a dotted name is that of a public function, class or value."""
    module, _, last = name.rpartition(".")
    return module in MODULES.values() and last in public_names(module)
