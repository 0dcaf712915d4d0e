"""Sphinx makes a site of docs/, with an API reference from the docstrings: `make docs`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import effbench

DOCS = Path(__file__).parent

project = "effbench"
release = effbench.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
html_theme = "furo"
html_title = f"effbench {release}"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["width.css"]

myst_heading_anchors = 3  # links may name a heading

autodoc_member_order = "bysource"
numpydoc_show_class_members = False  # autodoc lists them
default_role = "code"

PAGES = {"../experiments/README.md": "studies.md", "../CONTRIBUTING.md": "contributing.md"}
"""Files outside docs/ that are pages of the site."""


def link_files(app: Any, page: str, source: list[str]) -> None:
    """Point links to Markdown files outside docs/ at their page, or at a copy of the file."""

    def target(found: re.Match[str]) -> str:
        return f"]({PAGES.get(found[1], f'path:{found[1]}')})"

    source[0] = re.sub(r"\]\((\.\./[^)#]+\.md)\)", target, source[0])


def find_public(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Resolve a class by its public name: signatures name the module that defines it."""
    name = str(node.get("reftarget", "")).rpartition(".")[2]
    if node.get("refdomain") != "py" or name not in effbench.__all__:
        return None
    python = env.get_domain("py")
    return python.resolve_xref(env, node["refdoc"], app.builder, "class", f"effbench.{name}", node, content)


def show_factories(app: Any, what: str, name: str, item: Any, options: Any, signature: str | None, returns: Any) -> Any:
    """Write a default that is made anew for each object as ``...``, since Sphinx cannot parse ``<factory>``."""
    return signature and signature.replace("<factory>", "..."), returns


def drop_module_docstring(app: Any, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """Leave out what a module says of itself: the page introduces its names."""
    if what == "module":
        lines.clear()


def setup(app: Any) -> None:
    app.connect("source-read", link_files)
    app.connect("missing-reference", find_public)
    app.connect("autodoc-process-signature", show_factories)
    app.connect("autodoc-process-docstring", drop_module_docstring)
