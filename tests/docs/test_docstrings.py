"""Every example in a docstring runs, and every loss says what its reader needs in the same order."""

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

MODULES = [importlib.import_module(info.name) for info in pkgutil.walk_packages(fcfd.__path__, "fcfd.")]
SECTIONS = ("Args:", "Returns:", "Raises:", "Example:", "Reference:")
PLAIN = {"cross_entropy"}
"""Not a method of anybody: no reference."""


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples_run(module: ModuleType) -> None:
    names = {"torch": torch, "fcfd": fcfd}
    assert doctest.testmod(module, extraglobs=names, optionflags=doctest.ELLIPSIS).failed == 0


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
