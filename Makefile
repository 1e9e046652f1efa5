# Every target sets up what it needs in a virtual environment of its own.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS)

# As wide as the site shows a line of code without a scroll bar.
PAGES := $(wildcard *.md) benchmarks/README.md $(shell find docs -name '*.md')

.PHONY: demo test slow lint bench docs package clean

# One thread for each of a few processes: small tensors gain nothing from more threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4

test: $(VENV)/.test
	$(PYTEST)

slow: $(VENV)/.test
	$(PYTEST) -m slow

demo: $(VENV)/.bench
	$(BIN)/python -m benchmarks.demo

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.losses

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ruff format --check --line-length 88 $(PAGES)
	$(BIN)/mypy

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

package:
	PYTHON=$(PYTHON) CONSTRAINTS=$(CONSTRAINTS) .ci/package

clean:
	rm -rf $(VENV) site

$(VENV)/.env:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

# torchvision and timm without their dependencies, which would bring a second build of torch.
$(VENV)/.test: pyproject.toml $(CONSTRAINTS) | $(VENV)/.env
	$(PIP) --editable '.[test,bench]'
	$(PIP) --no-deps torchvision timm
	touch $@

$(VENV)/.bench: pyproject.toml $(CONSTRAINTS) | $(VENV)/.env
	$(PIP) --editable '.[bench]'
	touch $@

# With the types of all that is checked.
$(VENV)/.lint: pyproject.toml $(CONSTRAINTS) | $(VENV)/.env
	$(PIP) --editable '.[test,bench,docs,lint]'
	touch $@

$(VENV)/.docs: pyproject.toml $(CONSTRAINTS) | $(VENV)/.env
	$(PIP) --editable '.[docs]'
	touch $@
