"""What runs for the public is what runs on a desk, on the versions that the package states."""

import re
from pathlib import Path

import pytest

import fcfd

ROOT = Path(__file__).parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text()
WORKFLOW = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
FORMS = sorted((ROOT / ".github").rglob("*.yml"))


def test_continuous_integration_runs_the_makefile_s_commands() -> None:
    commands = re.findall(r"- run: (.*)", WORKFLOW)
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [command.split()[1] for command in commands] == ["lint", "docs", "test", "package"]
    assert all(command.startswith("make ") and command.split()[1] in targets for command in commands)
    assert re.findall(r"^make (\w+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE) == [
        "lint",
        "docs",
        "test",
    ]


def test_the_oldest_versions_are_those_that_the_package_states() -> None:
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)", (ROOT / ".ci" / "oldest.txt").read_text(), re.MULTILINE))
    stated = re.search(r"^dependencies = \[(.*)\]$", PROJECT, re.MULTILINE)
    assert stated
    least = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', stated[1]))
    assert least
    assert {name: pins[name].removesuffix(".0") for name in least} == least
    python = re.search(r'^requires-python = ">=([\d.]+)"$', PROJECT, re.MULTILINE)
    assert python
    assert f'python: "{python[1]}"\n            constraints: .ci/oldest.txt' in WORKFLOW


def test_the_version_has_one_source() -> None:
    assert 'dynamic = ["version"]' in PROJECT
    assert not re.search(r"^version\b", PROJECT, re.MULTILINE)
    assert re.fullmatch(r"\d+\.\d+\.\d+\w*", fcfd.__version__)


@pytest.mark.parametrize("form", [*FORMS, ROOT / ".pre-commit-config.yaml"], ids=lambda path: path.name)
def test_a_form_can_be_read(form: Path) -> None:
    read = pytest.importorskip("yaml").safe_load(form.read_text())
    if form.parent.name == "ISSUE_TEMPLATE" and form.stem != "config":
        assert {"name", "description", "body"} <= set(read)
        asked = [field["attributes"] for field in read["body"]]
        assert all("label" in field for field in asked)
    assert isinstance(read, dict)
