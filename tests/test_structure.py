"""The shape of the library: layers, the public surface, size, and documentation of every name."""

import ast
import inspect
from pathlib import Path

import pytest

import fcfd
from fcfd import losses

PACKAGE = Path(fcfd.__file__).parent

LAYERS = (
    ("_check", "_layout", "_precision", "_norms", "paths", "schedules"),
    ("logits", "policies", "features", "maps", "relations", "contrastive", "detection"),
    ("terms",),
    ("stages", "bridges"),
    ("_record",),
    ("_inject", "transforms"),
    ("_rehearse",),
    ("split", "match"),
    ("walk", "recipes"),
    ("link", "losses"),
)
"""A module imports only from layers before its own, and never from the package root."""

SURFACE = """
    Aux Linked Network Term bridge bridged checkpointed compiled crossings depth draw frozen joined link
    losses match measure objective plan prefixes reads recipes schedules settle split stage step total walk
    write_buffers_
"""


def _modules() -> dict[str, ast.Module]:
    return {path.stem: ast.parse(path.read_text()) for path in sorted(PACKAGE.glob("*.py"))}


def _imported(tree: ast.Module) -> set[str]:
    """Modules of this package that a module imports, by name; `fcfd` itself as the empty name."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            found |= {node.module} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fcfd":
            found.add((node.module or "")[5:])
        elif isinstance(node, ast.Import):
            found |= {alias.name[5:] for alias in node.names if alias.name.split(".")[0] == "fcfd"}
    return found


def test_every_module_has_a_layer():
    assert sorted(_modules().keys() - {"__init__"}) == sorted(name for layer in LAYERS for name in layer)


@pytest.mark.parametrize("name", [name for layer in LAYERS for name in layer])
def test_imports_go_one_way(name):
    place = next(at for at, layer in enumerate(LAYERS) if name in layer)
    below = {module for layer in LAYERS[:place] for module in layer}
    beside = {module for module in LAYERS[place] if module.startswith("_")}
    assert _imported(_modules()[name]) <= below | beside


def test_the_grammar_and_the_schedules_import_no_torch():
    for name in ("paths", "schedules"):
        tree = _modules()[name]
        roots = {
            (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        assert not {root for root in roots if root.split(".")[0] in ("torch", "numpy", "einops")}


def test_the_old_functorch_package_is_not_used():
    assert not [path for path in PACKAGE.glob("*.py") if "import functorch" in path.read_text()]


def test_the_public_surface_is_inventoried():
    exported = {
        alias.asname: alias.name
        for node in ast.walk(_modules()["__init__"])
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(exported, key=str.casefold) == sorted(SURFACE.split(), key=str.casefold)
    assert all(renamed == name for renamed, name in exported.items())


def test_losses_offers_every_function_of_the_families():
    for family in LAYERS[1]:
        for node in _modules()[family].body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert hasattr(losses, node.name), f"fcfd.losses lacks {family}.{node.name}"


def _public_functions():
    for path in sorted(PACKAGE.glob("*.py")):
        if path.stem.startswith("_"):
            continue
        module = inspect.importlib.import_module(f"fcfd.{path.stem}")
        for name, thing in vars(module).items():
            own = getattr(thing, "__module__", None) == module.__name__
            if own and not name.startswith("_") and (inspect.isfunction(thing) or inspect.isclass(thing)):
                yield pytest.param(thing, id=f"{path.stem}.{name}")


@pytest.mark.parametrize("thing", list(_public_functions()))
def test_every_public_name_is_documented_and_annotated(thing):
    doc = inspect.getdoc(thing)
    assert doc, "no docstring"
    assert doc.split("\n")[0].endswith((".", ":")), "the first line is a sentence"
    if inspect.isfunction(thing):
        signature = inspect.signature(thing)
        assert signature.return_annotation is not inspect.Signature.empty
        for parameter in signature.parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty, parameter


def test_only_records_and_modules_are_classes():
    """A class is a NamedTuple of data or an nn.Module: nothing else holds behaviour."""
    for name, tree in _modules().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not name.startswith("_") and not node.name.startswith("_"):
                bases = {ast.unparse(base) for base in node.bases}
                assert bases & {"NamedTuple", "nn.Module"}, f"{name}.{node.name} derives from {bases}"


def test_what_mutates_is_named_so():
    assert [name for name in vars(fcfd) if name.endswith("_") and not name.startswith("_")] == [
        "write_buffers_"
    ]
