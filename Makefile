# make ablation    the sweep on this machine, from nothing
# make card        the robustness card of the ablation's models: everything they can be shown
# make search      a search on this machine: what is on the front, within a budget
# make test        all tests, in two processes;  make lint   style, types
# make check       make lint, and all tests that start no processes
# make setup CONSTRAINTS=constraints/gpu.txt    on a machine with an NVIDIA GPU

PYTHON ?= $(shell command -v python3.11 || command -v python3)
CONSTRAINTS ?= constraints/cpu.txt
DISK_GB ?= $(if $(findstring gpu,$(CONSTRAINTS)),15,5)
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready-$(basename $(notdir $(CONSTRAINTS)))

# Operators are compiled with the environment's own ninja.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup ablation card search test check lint format clean help

help:
	@sed -n 's/^# make/make/p' Makefile

setup: $(STAMP)

# --no-compile: pip compiles one file after the other; compileall uses all cores (some packages ship files that no
# Python 3 compiles). Without bytecode the first run would compile in every worker at once.
# imagecorruptions-imaug comes without what it asks for: an OpenCV that needs a desktop; the headless one is there.
# The last step: DeepSpeed compiles an operator when it is first used, so it is used here and the first training run
# need not wait.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@.ci/preflight "$(PYTHON)" $(DISK_GB)
	@echo "setting up $(VENV) with $(CONSTRAINTS): some minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	PYTHONWARNINGS='ignore:Editable installation' $(BIN)/python -m pip install --quiet --no-compile --constraint $(CONSTRAINTS) --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --constraint $(CONSTRAINTS) imagecorruptions-imaug
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true
	$(if $(findstring gpu,$(CONSTRAINTS)),,DS_ACCELERATOR=cpu $(BIN)/python -m cluster.prebuild)
	@touch $@

ablation: setup
	$(BIN)/python sweeps/encoder_ablation.py $(ARGS)

card: setup
	$(BIN)/python sweeps/robustness_card.py $(ARGS)

search: setup
	$(BIN)/python sweeps/search.py $(ARGS)

test: setup
	$(BIN)/python -m pytest -n 2 $(ARGS)

check: lint
	$(BIN)/python -m pytest -n 2 -m "not processes" $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
