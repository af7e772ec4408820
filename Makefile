# The two commands of the README, and what they stand on. Without make, the README has the plain commands.
PYTHON ?= python3
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif
INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable

.PHONY: train test reliability check format clean

train: .venv/core.stamp  ## the default run: NumPy alone, about a minute, samples at its end
	$(BIN)/python cli.py train

# The study page's browser tests need Chromium and are skipped without: on Debian, apt-get install chromium.
test: .venv/dev.stamp  ## everything that must hold, the slow proofs included
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not endurance" --durations 30 --durations-min 10

reliability: .venv/dev.stamp  ## a hundred kills, a thousand flipped bytes, a gigabyte, a long soak, more seeds and models
	$(BIN)/python -m pytest -m "" tests/reliability
	$(BIN)/python -m pytest -n 2 --dist worksteal -m endurance --ignore tests/reliability

check: .venv/dev.stamp  ## the same without the slow proofs, for every change
	$(BIN)/ruff check .
	$(BIN)/python -m pytest

format: .venv/dev.stamp  ## put the code into the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the environment; runs are kept
	rm -rf .venv

.venv/core.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) .
	touch $@

.venv/dev.stamp: .venv/core.stamp
	$(INSTALL) ".[dev]"
	touch $@
