# The venv is made once, and again when setup.py changes.
PYTHON ?= python3.11
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: test test-slow lint

test: $(INSTALLED)
	@echo '== tests (slow ones: make test-slow)'
	$(PY) -m pytest

test-slow: $(INSTALLED)
	@echo '== slow tests'
	$(PY) -m pytest -m slow

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(INSTALLED): setup.py
	@echo '== installing into $(VENV) (a few minutes the first time)'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --upgrade pip
	$(PY) -m pip install -q -e '.[dev]'
	@touch $@
