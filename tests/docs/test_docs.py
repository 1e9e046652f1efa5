"""What the documentation says is true: its code runs, prints what it says, and names and links what exists.

The blocks of a page run in order, in one namespace. A block of text right after a block of Python is what
that one prints. A block of `py` or `yaml` is another library's: it is shown, not run. The examples of
docstrings run in `tests/docs/test_docstrings.py`.
"""

import contextlib
import importlib
import inspect
import io
import pkgutil
import re
from collections.abc import Iterator
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE, OutputChecker
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import fcfd
from docs.scripts import schematic, tables
from reference import torchvision_cpu

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), ROOT / "benchmarks" / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
WITHIN_LOSSES = ("families", "objectives")
INTERNAL = ("bridging", "copying", "detecting", "leaning")
"""Modules of which users import nothing."""
MODULES = sorted(
    info.name
    for info in pkgutil.iter_modules(fcfd.__path__)
    if not info.name.startswith("_") and info.name not in (*WITHIN_LOSSES, *INTERNAL)
)
FACES = ("detection", "losses", "splitting")
"""What users import from these is defined elsewhere: their pages list it."""
WIDTH = 88
"""Characters of a line of code that a page of the site shows without a scroll bar."""


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


every_page = pytest.mark.parametrize("page", PAGES, ids=_name)


# Code


class Block(NamedTuple):
    """A block of Python, the line of its page, and what it prints if the page says so."""

    line: int
    code: str
    prints: str | None


FENCE = re.compile(r"^( *)```(\S*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def _blocks(text: str) -> Iterator[Block]:
    fences = list(FENCE.finditer(text))
    for at, fence in enumerate(fences):
        after = fences[at + 1] if at + 1 < len(fences) else None
        if fence[2] == "python":
            printed = after and after[2] == "text" and not text[fence.end() : after.start()].strip()
            yield Block(text.count("\n", 0, fence.start()) + 1, fence[3], after[3] if printed else None)


def _loader() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two batches of random images: what a page that begins with `loader` is given."""
    return [(torch.randn(2, 3, 64, 64), torch.randint(1000, (2,))) for _ in range(2)]


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretrained weights are random ones here; all else of `weights="DEFAULT"` is torchvision's own."""
    torchvision_cpu.prepare()
    models = importlib.import_module("torchvision.models")

    def downloaded(url: str, **options: Any) -> dict[str, torch.Tensor]:
        architecture = url.rpartition("/")[2].partition("-")[0]
        return models.get_model(architecture).state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", downloaded)


@every_page
@pytest.mark.usefixtures("no_download")
def test_every_block_runs_and_prints_what_the_page_says(page: Path) -> None:
    names: dict[str, Any] = {"__name__": _name(page), "loader": _loader()}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in _blocks(page.read_text()):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile("\n" * block.line + block.code, page, "exec"), names)
            if block.prints is not None:
                rules = ELLIPSIS | NORMALIZE_WHITESPACE
                same = OutputChecker().check_output(block.prints, printed.getvalue(), rules)
                assert same, f"{_name(page)}:{block.line} printed\n{printed.getvalue()}"
    torch.compiler.reset()


@every_page
def test_no_block_hides_in_an_indentation(page: Path) -> None:
    assert not [fence[2] for fence in FENCE.finditer(page.read_text()) if fence[1] and fence[2] == "python"]


@every_page
def test_no_block_needs_a_scroll_bar(page: Path) -> None:
    for fence in FENCE.finditer(page.read_text()):
        assert [line for line in fence[3].splitlines() if len(line) > WIDTH] == []


@every_page
def test_what_is_not_run_is_of_another_library_and_says_so(page: Path) -> None:
    for fence in FENCE.finditer(page.read_text()):
        if fence[2] in ("py", "yaml"):
            assert page.name == "migrating.md"
            assert fence[0].startswith(f'```{fence[2]} title="before, not run"\n')
            assert "fcfd" not in fence[3], "our own code runs"
            if fence[2] == "py":
                compile(fence[3], page, "exec")


def test_limits_name_every_reconstruction() -> None:
    limits = (ROOT / "docs" / "limits.md").read_text()
    things = {
        f"{module}.{name}": thing
        for module in ("losses", "recipes", "bridges")
        for name, thing in vars(getattr(fcfd, module)).items()
        if not name.startswith("_") and callable(thing)
    }
    found = [name for name, thing in things.items() if "reconstruction" in (inspect.getdoc(thing) or "")]
    assert len(found) >= 5
    assert [name for name in found if f"{name}`" not in limits] == []


# Names

SHORT = {"losses": fcfd.losses, "recipes": fcfd.recipes, "schedules": fcfd.schedules}
QUALIFIED = re.compile(r"`@?(fcfd|losses|recipes|schedules)((?:\.\w+)+)")


@every_page
def test_every_name_of_the_library_exists(page: Path) -> None:
    for root, attributes in QUALIFIED.findall(FENCE.sub("", page.read_text())):
        thing: Any = SHORT.get(root, fcfd)
        for attribute in attributes.split(".")[1:]:
            module = f"fcfd.{attribute}"
            thing = getattr(thing, attribute, None) or importlib.import_module(module)


@every_page
def test_no_page_knows_the_machine_on_which_it_was_written(page: Path) -> None:
    assert not re.findall(r"(?<![\w.])/(?:work|tmp|root|home|mnt)\b", page.read_text())


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_on_the_page_of_its_module(module: str) -> None:
    """The page shows all that has a docstring; `mkdocs build` looks for each name in what it wrote."""
    text = (ROOT / "docs" / "api" / f"{module}.md").read_text()
    assert f": api/{module}.md\n" in (ROOT / "mkdocs.yml").read_text()
    own = importlib.import_module(f"fcfd.{module}")
    public = {
        name: thing
        for name, thing in vars(own).items()
        if not name.startswith("_") and (inspect.isfunction(thing) or inspect.isclass(thing))
        if thing.__module__ == own.__name__ or module in FACES
    }
    for name, thing in public.items():
        assert inspect.getdoc(thing), f"fcfd.{module}.{name} has no docstring"
    if module in FACES:
        assert text.startswith(f"# fcfd.{module}\n")
        listed = re.findall(r"^ +- (\w+)$", text, re.MULTILINE)
        assert sorted(listed) == sorted(public)
    else:
        assert text == f"# fcfd.{module}\n\n::: fcfd.{module}\n"


# Links and tables

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")


@every_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        target, _, anchor = "".join(link).partition("#")
        if not target.startswith(("http://", "https://")):
            there = page.parent / target if target else page
            assert there.is_file(), f"{_name(page)} links to {target}"
            assert not anchor or anchor in _anchors(there), f"{_name(page)} links to {target}#{anchor}"


def test_what_another_page_includes_links_to_no_file() -> None:
    for part in re.findall(
        r"\[start:\w+\] -->\n(.*?)<!-- --8<-- \[end", (ROOT / "README.md").read_text(), re.DOTALL
    ):
        links = ["".join(link) for link in LINK.findall(FENCE.sub("", part))]
        assert [link for link in links if not link.startswith("https://")] == [], "a file is elsewhere there"


def _anchors(page: Path) -> set[str]:
    """What a link may name: headings, and on the page of a module its members."""
    if page.parent.name == "api":
        return {f"fcfd.{page.stem}.{name}" for name in vars(importlib.import_module(f"fcfd.{page.stem}"))}
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = [_name(page).removeprefix("docs/") for page in PAGES if page.is_relative_to(ROOT / "docs")]
    assert [page for page in pages if not re.search(rf"\b{page}$", navigation, re.MULTILINE)] == []


@pytest.mark.parametrize("page", tables.PAGES, ids=_name)
def test_generated_tables_are_up_to_date(page: Path) -> None:
    assert page.read_text() == tables.written(page.read_text()), "run python -m docs.scripts.tables"


def test_the_schematic_is_up_to_date() -> None:
    assert schematic.FILE.read_text() == schematic.drawn(), "run python -m docs.scripts.schematic"
