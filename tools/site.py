"""Pages of the site that are no files in docs/: the README, and a reference of the public names.

MkDocs calls these functions (``hooks`` in mkdocs.yml).
"""

import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
from site_names import MODULES, ROOT, public_names

# Files of the repository that the pages name, and the site does not have.
ELSEWHERE = re.compile(r"\[([^]]+)\]\((?:\.\./)?(?:benchmarks|notebooks|CONTRIBUTING)[^)]*\)")


# A page as the documents name it, for readers of the files.
PAGE = re.compile(r"\[(?:docs/)?(\w+)\.md\]")


def title(match: re.Match[str]) -> str:
    """The heading of a page, as the text of a link to it."""
    first, _, _ = (ROOT / "docs" / f"{match[1]}.md").read_text(encoding="utf-8").partition("\n")
    return f"[{first.removeprefix('# ')}]"


def quick_start() -> str:
    """The README, whose links are those of a page beside the documents."""
    return (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")


def reference(module: str) -> str:
    """A page of the functions and classes that a module makes public."""
    entries = [f"::: {module}.{name}" for name in public_names(module)]
    return "\n\n".join([f"# {module}", *entries]) + "\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {f"api/{name}.md": reference(module) for name, module in MODULES.items()}
    for name, text in {"index.md": quick_start(), **pages}.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    return PAGE.sub(title, ELSEWHERE.sub(r"\1", markdown))
