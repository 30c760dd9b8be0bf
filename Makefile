# Every target does all of its own set-up: Python 3.11 or newer and make are enough.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PYTHONWARNINGS ?=
export MPLBACKEND := Agg

.PHONY: help demo test lint verify docs clean

help:
	@echo "make demo    adapt a small network from a toy game to toy cities, with its control, in minutes"
	@echo "make test    lint, types, tests with doctests and examples, docs"
	@echo "make verify  the long proofs; writes the tables that the docs show"
	@echo "make docs    build the docs into docs/_build/html"
	@echo "make clean   remove the environment and everything built"

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,docs,integrations,onnx]'
	touch $@

$(VENV)/examples: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,viz]'
	touch $@

demo: $(VENV)/examples
	$(BIN)/python examples/gta2cityscapes.py

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n auto --dist loadfile
	$(MAKE) docs

docs: $(VENV)/ready
	$(BIN)/sphinx-build -q -W -b html docs docs/_build/html

verify: $(VENV)/ready
	$(BIN)/python tests/verify.py

clean:
	rm -rf $(VENV) build dist docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis
