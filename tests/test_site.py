"""The site of the documents: built without a warning, with all public names and no others."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))
from site_names import MODULES, ROOT, is_public, public_names

needs_mkdocs = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings_handlers")),
    reason="mkdocs is not installed: pip install mkdocs-material 'mkdocstrings[python]'",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@needs_mkdocs
@pytest.mark.parametrize("page", MODULES)
def test_the_reference_has_the_public_names_and_no_others(site, page):
    text = (site / "api" / f"{page}.html").read_text(encoding="utf-8")
    headings = set(re.findall(r'id="(metasparse_ext\.[\w.]+)" class="doc doc-heading"', text))
    assert {f"{MODULES[page]}.{name}" for name in public_names(MODULES[page])} <= headings
    private = [name for name in headings if re.search(r"\._(?!_init__)", name)]
    assert not private


@needs_mkdocs
@pytest.mark.parametrize("page", [*(f"api/{module}" for module in MODULES), "faq", "index"])
def test_no_markup_of_another_kind_is_left(site, page):
    text = (site / f"{page}.html").read_text(encoding="utf-8")
    assert not re.findall(r":(?:class|func|meth|mod|math):|\w::\s*<|```", text)


@needs_mkdocs
def test_every_document_is_in_the_navigation(site):
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2]
    missing = [path.name for path in ROOT.glob("docs/*.md") if f" {path.name}\n" not in navigation]
    assert not missing


@pytest.mark.parametrize("module", MODULES.values())
def test_public_names_are_what_the_module_says(module):
    assert set(public_names(module)) <= set(dir(__import__(module, fromlist=["x"])))
    assert is_public(f"{module}.{public_names(module)[0]}")
    assert not is_public(f"{module}._hidden")


@needs_mkdocs
def test_docstrings_become_markdown():
    from docstrings import markdown, parameters_apart

    text = "Sum.\n\nArgs:\n    a, b: Of\n        both.\n    c: Other.\n\nReturns:\n    x, y: no.\n"
    assert parameters_apart(text) == (
        "Sum.\n\nArgs:\n    a: Of\n        both.\n    b: Of\n        both.\n    c: Other.\n\n"
        "Returns:\n    x, y: no.\n"
    )
    assert parameters_apart("Nothing.") == "Nothing."
    assert markdown(":func:`~metasparse_ext.topk_mask` or :meth:`adapt`::\n\n    x") == (
        "[`topk_mask`][metasparse_ext.topk_mask] or `adapt`:\n\n    x"
    )
    assert markdown("Source: Finn,\n    2017.") == "**Source.** Finn,\n2017."
