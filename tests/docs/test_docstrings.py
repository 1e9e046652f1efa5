"""Examples in docstrings run, code in them is narrow, and every loss says what its reader needs in order."""

import doctest
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

import fcfd
from reference.catalogue import ROWS

from .test_docs import FENCE, WIDTH

MODULES = [importlib.import_module(info.name) for info in pkgutil.walk_packages(fcfd.__path__, "fcfd.")]
SECTIONS = ("Args:", "Returns:", "Raises:", "Example:", "Reference:")
PLAIN = {"cross_entropy"}
"""Not a method of anybody: no reference."""
EXAMPLE = re.compile(r"^ *>>> .*?(?=^\s*$|\Z)", re.MULTILINE | re.DOTALL)
"""What is typed and what it prints, up to an empty line."""


def _public(module: ModuleType) -> dict[str, Any]:
    """The functions and classes that a module defines, and the methods of those classes, by name."""
    own = {
        name: thing
        for name, thing in vars(module).items()
        if (inspect.isfunction(thing) or inspect.isclass(thing)) and thing.__module__ == module.__name__
        if not name.startswith("_")
    }
    methods = {
        f"{name}.{attribute}": method
        for name, thing in own.items()
        if inspect.isclass(thing)
        for attribute, method in vars(thing).items()
        if inspect.isfunction(method) or isinstance(method, property)
        if not attribute.startswith("_")
    }
    return own | methods


PUBLIC = [
    pytest.param(thing, id=f"{module.__name__}.{name}")
    for module in MODULES
    for name, thing in _public(module).items()
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples_run(module: ModuleType) -> None:
    names = {"torch": torch, "fcfd": fcfd}
    assert doctest.testmod(module, extraglobs=names, optionflags=doctest.ELLIPSIS).failed == 0


@pytest.mark.parametrize("thing", PUBLIC)
def test_no_code_in_a_docstring_needs_a_scroll_bar(thing: Any) -> None:
    doc = inspect.getdoc(thing) or ""
    code = [*(fence[3] for fence in FENCE.finditer(doc)), *EXAMPLE.findall(doc)]
    assert [line for block in code for line in block.splitlines() if len(line) > WIDTH] == []


@pytest.mark.parametrize("loss", [row.loss for row in ROWS], ids=lambda loss: loss.__name__)
def test_a_loss_says_formula_shapes_errors_example_and_source(loss: Callable[..., Any]) -> None:
    doc = inspect.getdoc(loss) or ""
    sections = [section for section in SECTIONS if section != "Reference:" or loss.__name__ not in PLAIN]
    places = [doc.find("\n" + section + "\n") for section in sections]
    assert -1 < doc.find("```") < places[0]
    assert sorted(places) == places
    arguments = doc[doc.find("Args:") : doc.find("Returns:")]
    for name, parameter in inspect.signature(loss).parameters.items():
        assert re.search(rf"^    {name}: \S", arguments, re.MULTILINE), f"{name} is not described"
        assert (parameter.kind is parameter.KEYWORD_ONLY) == (parameter.default is not parameter.empty)
