"""The suite for a GPU: whatever becomes of a part, what it measured stays, and the next one runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("step", "memory", "check", "step-paths", "losses", "step-half", "step-compiled")

FAKE = """#!/bin/sh
# Stands for Python: has a version, and ends each part as it is told.
if [ "$1" = -c ]; then echo 9.9; exit 0; fi
while [ $# -gt 0 ]; do
  case $1 in --out) out=$2;; --name) name=$2;; esac
  shift
done
case $name in
  *-memory) echo '{"rows": [1]}' >"$out/$name.json"; : >"$out/$name.csv"; exit 124;;
  gpu-step) exit $FIRST;;
  *) echo '{"rows": []}' >"$out/$name.json"; : >"$out/$name.svg";;
esac
"""


def suite(out: Path, *options: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--device", "cpu", *options],
        env={**os.environ, "OUT": str(out), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("first", "end"), [("1", "step: FAILED, and has NOTHING"), ("124", "has NOTHING")])
def test_a_part_that_ends_early_keeps_what_it_has_and_the_next_one_runs(first, end, tmp_path):
    fake = tmp_path / "python"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    out = tmp_path / "out"
    out.mkdir()
    (out / "gpu-step.json").write_text("of another run")
    found = suite(out, PYTHON=str(fake), FIRST=first)
    assert found.returncode == 1, "a part without a record is a failure"
    assert end in found.stdout
    assert "memory: STOPPED after 65 s, what it has is kept" in found.stdout
    assert all(f"{name}: finished" in found.stdout for name in PARTS[2:])
    names = {each.name for each in out.iterdir()}
    assert names == {"gpu.log", *(f"gpu-{name}.json" for name in PARTS[1:])}, "records, and the log"
    assert json.loads((out / "gpu-memory.json").read_text()) == {"rows": [1]}


def test_an_option_that_is_not_known_is_refused(tmp_path):
    found = suite(tmp_path, "--fast")
    assert found.returncode == 2
    assert "unknown option --fast" in found.stderr


@pytest.mark.slow
def test_the_dry_run(tmp_path):
    """Every part, with tiny networks."""
    found = suite(tmp_path, "--quick", PYTHON=sys.executable, OMP_NUM_THREADS="1")
    assert found.returncode == 0, found.stdout[-4000:]
    for name in PARTS:
        assert f"{name}: finished" in found.stdout
        assert json.loads((tmp_path / f"gpu-{name}.json").read_text())["rows"]
