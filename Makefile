# The venv is made once, and brought up to date when setup.py changes.
PYTHON ?= python3.11
VENV := .venv
PY := $(VENV)/bin/python
MEMAGENT := $(VENV)/bin/memagent
INSTALLED := $(VENV)/.installed
OUT := demo_output
# The TPU compiler, apart from jax, which would otherwise look for a TPU at every start.
TPU_AOT := $(VENV)/tpu_aot
DOCS := $(VENV)/.docs
TWO_DEVICES := XLA_FLAGS=--xla_force_host_platform_device_count=2
# Tests spend more time compiling than computing.
QUICK_COMPILES := XLA_FLAGS=--xla_backend_optimization_level=0

.PHONY: demo test test-slow mutants lint docs

demo: $(INSTALLED)
	@rm -rf $(OUT)
	@mkdir -p $(OUT)
	@echo '== 1 of 3: a tiny model that reads single chunks learns to keep a memory'
	$(TWO_DEVICES) $(MEMAGENT) train --live --gin_file=demo_grpo \
	  --workdir=$(OUT)/grpo
	@echo '== 2 of 3: before and after, on documents far longer than those it learned from'
	$(MEMAGENT) evaluate --gin_file=demo_lengths --workdir=$(OUT)/lengths --processes=2
	$(MEMAGENT) report --workdir=$(OUT)/lengths --trained_tokens=700 \
	  --scorer=boxed_em
	@echo '== 3 of 3: a language model reads the start of a novel, chunk by chunk'
	$(MEMAGENT) ask --document=adventures_of_sherlock_holmes --max_characters=20000 \
	  --question='Under what name does the masked visitor come to Holmes?' \
	  --chunk_tokens=1024 --memory_tokens=96 --answer_tokens=64 \
	  --output=$(OUT)/reading.json --trace=$(OUT)/reading.html
	@echo '== the curve: $(OUT)/lengths/report_boxed_em/report.html; the life of a memory: $(OUT)/reading.html'

test: $(INSTALLED) $(TPU_AOT)
	@echo '== tests (the slow ones: make test-slow)'
	$(QUICK_COMPILES) PYTHONPATH=$(TPU_AOT) TPU_SKIP_MDS_QUERY=1 $(PY) -m pytest --numprocesses=2 --dist=worksteal

test-slow: $(INSTALLED) $(TPU_AOT)
	@echo '== slow tests'
	PYTHONPATH=$(TPU_AOT) TPU_SKIP_MDS_QUERY=1 $(PY) -m pytest -m slow --numprocesses=2 --dist=worksteal --durations=10

# Small bugs, put into a copy of the code one at a time: the tests must notice each.
# ONLY=TEXT selects the bugs with TEXT in their description or file.
mutants: $(INSTALLED) $(TPU_AOT)
	@echo '== small bugs, one at a time'
	$(QUICK_COMPILES) PYTHONPATH=$(TPU_AOT) TPU_SKIP_MDS_QUERY=1 $(PY) -m tests.mutants.run --only='$(ONLY)'

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Without network, and with warnings as errors; broken links are warnings.
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet
	@echo '== the site: site/index.html'

$(INSTALLED): setup.py
	@echo '== installing into $(VENV); the first time takes a few minutes'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet --editable '.[dev]'
	@touch $@

$(TPU_AOT): $(INSTALLED)
	@echo '== installing the TPU compiler into $@'
	$(PY) -m pip install --quiet --no-deps --upgrade --target $@ libtpu
	@touch $@

$(DOCS): $(INSTALLED)
	@echo '== installing what builds the site'
	$(PY) -m pip install --quiet --editable '.[docs]'
	@touch $@
