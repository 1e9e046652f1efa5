"""A build without some public name is an error: mkdocs calls this when the pages are written."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

WITHIN = {"objectives": "losses"}
"""Modules that have no page, because all of them is on another one's."""


INTERNAL = {"bridging"}
"""Modules of which users import nothing."""


def on_post_build(config: Any) -> None:
    """Look for every name that users import, on the page of the module that they import it from."""
    site, package = Path(config["site_dir"]), Path(config["config_file_path"]).parent / "fcfd"
    missing = [
        f"fcfd.{module}.{name}"
        for module, name in dict.fromkeys(_public(package))
        if f'id="fcfd.{module}.{name}"' not in _read(site / "api" / module / "index.html")
    ]
    if missing:
        raise PluginError(f"No page shows {', '.join(missing)}. Write a docstring, or a page under docs/api.")


def _public(package: Path) -> Iterator[tuple[str, str]]:
    """Modules of the package with what they define, what they offer of others, and what the root takes."""
    for module, name in _offered(package / "__init__.py"):
        if module:
            yield module, name
    for path in sorted(package.glob("[!_]*.py")):
        if path.stem in INTERNAL:
            continue
        module = WITHIN.get(path.stem, path.stem)
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                yield module, node.name
        yield from ((module, name) for _, name in _offered(path))


def _offered(path: Path) -> Iterator[tuple[str, str]]:
    """Every `from .module import name as name` of a file, by module and name."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names = [alias.name for alias in node.names if alias.asname == alias.name]
            yield from ((node.module or "", name) for name in names)


def _read(page: Path) -> str:
    return page.read_text() if page.exists() else ""
