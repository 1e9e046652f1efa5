"""The shape of the library: layers, the public surface, size, and documentation of every name."""

import ast
import importlib
import inspect
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import fcfd
from fcfd import losses

PACKAGE = Path(fcfd.__file__).parent

LAYERS = (
    ("_text", "_modes"),
    ("_tree", "_reading", "layouts", "paths", "schedules"),
    ("copying.attributes", "copying.watching"),
    ("copying.copies",),
    ("copying.refusals", "copying.standing"),
    ("families._numerics", "families._closed"),
    ("families._softmaxes",),
    ("families._bins", "families._parts"),
    ("_rows",),
    ("families._checks",),
    ("families.heads",),
    (
        "families.logits",
        "families.divergences",
        "families.ranks",
        "families.sparse",
        "families.vocabularies",
        "families.tokens",
        "families.standardization",
        "families.temperatures",
        "families.features",
        "families.maps",
        "families.relations",
        "families.contrastive",
        "families.detection",
        "families.positions",
    ),
    ("terms",),
    ("stages", "bridges", "leaning.functions"),
    ("leaning.recomputing",),
    ("leaning.operations",),
    ("splitting.graph", "splitting.network", "transforms", "resuming"),
    ("splitting.record", "splitting.listing", "placement", "synchronising"),
    ("splitting.inject",),
    ("splitting.assemble",),
    ("splitting.boundaries", "splitting.layouts"),
    ("splitting.verify",),
    ("splitting.cutting",),
    ("splitting", "matching"),
    ("walking", "recipes", "detecting._parts"),
    ("detecting.batch",),
    ("detecting.two_stages", "detecting.one_stage"),
    ("detection",),
    ("bridging", "objectives", "analysis", "stitching"),
    ("linking",),
    ("losses", "exporting"),
)
"""A module imports only from layers before its own, and never from the package root."""

SURFACE = """
    deferred
    detection
    Aux Columns Linked Network Term analysis as_module balanced bridge bridged cast checkpointed compiled
    counterpart crosses crossings depth draw ema evaluate expand frozen gathered is_bridged joined lean link
    losses masked match merge_buffers objective placed plan prefixes pure reads recipes replaced scaled
    schedules slots split spread stage step stitching synchronised walk weighted_sum write_buffers_
    write_slots_
"""


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@cache
def _modules() -> dict[str, ast.Module]:
    """Every module by its name within the package; the root is the empty name."""
    return {_name(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def _is_public(module: str) -> bool:
    """Whether users read its names: those of `splitting` are internal, but for what `fcfd` exports."""
    return (
        module != ""
        and not module.startswith(("splitting.", "copying", "leaning"))
        and "._" not in f".{module}"
    )


def _imported(module: str) -> set[str]:
    """Modules of this package that a module imports; the root as the empty name."""
    is_folder = (PACKAGE / module.replace(".", "/")).is_dir()
    package = module.split(".") if module else []
    package = package if is_folder else package[:-1]
    found = set()
    for node in ast.walk(_modules()[module]):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            base = [part for part in base if part]
            for alias in node.names:
                inner = ".".join([*base, alias.name])
                found.add(inner if inner in _modules() else ".".join(base))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fcfd":
            found.add((node.module or "")[5:])
        elif isinstance(node, ast.Import):
            found |= {alias.name[5:] for alias in node.names if alias.name.split(".")[0] == "fcfd"}
    return found


def test_every_module_has_a_layer():
    assert sorted(_modules().keys() - {"", "families", "copying", "leaning", "detecting"}) == sorted(
        name for layer in LAYERS for name in layer
    )


@pytest.mark.parametrize("name", [name for layer in LAYERS for name in layer])
def test_imports_go_one_way(name):
    place = next(at for at, layer in enumerate(LAYERS) if name in layer)
    below = {module for layer in LAYERS[:place] for module in layer}
    assert _imported(name) <= below


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
    assert not [path for path in PACKAGE.rglob("*.py") if "import functorch" in path.read_text()]


def test_the_public_surface_is_inventoried():
    exported = {
        alias.asname: alias.name
        for node in ast.walk(_modules()[""])
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(exported, key=str.casefold) == sorted(SURFACE.split(), key=str.casefold)
    assert all(renamed == name for renamed, name in exported.items())


def test_losses_offers_every_function_of_the_families():
    public = {
        node.name
        for name in _modules()
        if _is_public(name) and name.startswith("families.")
        for node in _modules()[name].body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    offered = {name for name in vars(losses) if not name.startswith("_")}
    assert offered == public | {"appearance", "function", "fcfd"}, "no loss is missing, nothing leaks"


def test_no_module_is_shadowed_by_what_its_package_imports():
    """`import fcfd.walking` and `fcfd.walking` are one thing."""
    for name in _modules().keys() - {""}:
        module = importlib.import_module(f"fcfd.{name}")
        package, _, last = f"fcfd.{name}".rpartition(".")
        assert getattr(importlib.import_module(package), last) is module


def _public_functions():
    for module in filter(_is_public, _modules()):
        for name, thing in vars(importlib.import_module(f"fcfd.{module}")).items():
            own = getattr(thing, "__module__", None) == f"fcfd.{module}"
            if own and not name.startswith("_") and (inspect.isfunction(thing) or inspect.isclass(thing)):
                yield pytest.param(thing, id=f"{module}.{name}")


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
    for name in filter(_is_public, _modules()):
        for node in _modules()[name].body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                bases = {ast.unparse(base) for base in node.bases}
                assert bases & {"NamedTuple", "nn.Module"}, f"{name}.{node.name} derives from {bases}"


def test_what_mutates_is_named_so():
    mutating = {name for name in vars(fcfd) if name.endswith("_") and not name.startswith("_")}
    assert mutating == {"write_buffers_", "write_slots_"}


FOLDERS = ("fcfd", "reference", "benchmarks", "docs/scripts", "tests")
"""A folder imports only from those before it: benchmarks and documentation know no tests."""


def _imports_of(path, root):
    """What a file outside the package imports, as dotted names: modules, or names in them."""
    package = list(path.relative_to(root).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield from (".".join([*base, *filter(None, [node.module]), each.name]) for each in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_import_one_way(folder):
    root = PACKAGE.parent
    later = {name.split("/")[0] for name in FOLDERS[FOLDERS.index(folder) + 1 :]}
    for path in sorted((root / folder).rglob("*.py")):
        assert not later & {name.split(".")[0] for name in _imports_of(path, root)}, path


@pytest.mark.parametrize("folder", ["benchmarks", "reference"])
def test_no_modules_import_each_other(folder):
    root = PACKAGE.parent
    names = {
        path: ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for path in (root / folder).rglob("*.py")
    }
    graph = {
        name: {
            other
            for other in set(names.values()) - {name}
            for imported in _imports_of(path, root)
            if imported in (other, f"{other}.{imported.rpartition('.')[2]}")
        }
        for path, name in names.items()
    }
    assert list(TopologicalSorter(graph).static_order()), "graphlib raises a CycleError for a circle"
