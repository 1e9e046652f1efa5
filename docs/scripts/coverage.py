"""A build without some public name is an error: mkdocs calls this when the pages are written."""

import ast
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError


def on_post_build(config: Any) -> None:
    """Look for every public function and class of every public module on the module's own page."""
    site, package = Path(config["site_dir"]), Path(config["config_file_path"]).parent / "fcfd"
    missing = [
        f"fcfd.{path.stem}.{name}"
        for path in sorted(package.glob("*.py"))
        if not path.stem.startswith("_")
        for name in _documented(path)
        if f'id="fcfd.{path.stem}.{name}"' not in _read(site / "api" / path.stem / "index.html")
    ]
    if missing:
        raise PluginError(f"No page shows {', '.join(missing)}. Write a docstring, or a page under docs/api.")


def _documented(path: Path) -> list[str]:
    nodes = (
        node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef | ast.ClassDef)
    )
    return [node.name for node in nodes if not node.name.startswith("_")]


def _read(page: Path) -> str:
    return page.read_text() if page.exists() else ""
