# Every target makes or updates the environment (.venv) itself: Python >= 3.11, git and make are all it needs.
# Another interpreter: make PYTHON=python3.12 test

SHELL := /bin/bash
PY := .venv/bin/python
STAMP := .venv/.installed
WORKERS ?= 2
# Several threads per worker only compete on small machines.
THREADS := OMP_NUM_THREADS=1

# Where the home folder cannot be written, what is fetched (packages, backbones, recordings) is kept in the checkout.
CACHE := $(shell cache="$${XDG_CACHE_HOME:-$${HOME:-/nowhere}/.cache}"; mkdir -p "$$cache" 2>/dev/null && test -w "$$cache" && echo home)
ifneq ($(CACHE),home)
export XDG_CACHE_HOME := $(CURDIR)/.cache
endif

.DEFAULT_GOAL := help
.PHONY: help demo test lint types smoke oldest newest upgrade results docs notebooks benchmark cost gpu-check format clean again
.DELETE_ON_ERROR:

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Made again, too, when its interpreter has gone.
$(STAMP): pyproject.toml constraints.txt .ci/environment $(shell $(PY) -c '' 2>/dev/null || echo again)
	@PYTHON="$(PYTHON)" .ci/environment
	@touch $@

demo: $(STAMP) ## train and compare methods on spoken prompts, and write a report (runs/demo)
	$(PY) -m examples.studies.verify_prompts.demo --out runs/demo $(ARGS)

test: lint types ## linters, types and all tests
	$(THREADS) $(PY) -m pytest -n $(WORKERS)

lint: $(STAMP) ## ruff: rules and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(STAMP) ## mypy over the package and the examples
	@rm -rf build/typing && mkdir -p build/typing/bayes_adapters
	@ln -s "$(CURDIR)"/bayes_adapters/* "$(CURDIR)/models" "$(CURDIR)/guides" build/typing/bayes_adapters/
	$(PY) -m mypy

smoke: $(STAMP) ## what a user does, once each, in a minute
	$(THREADS) $(PY) -m pytest -c tests/smoke/pytest.ini tests/smoke

oldest: $(STAMP) ## the smoke suite with the oldest versions that pyproject.toml allows (.venv-oldest)
	.ci/bounds oldest

newest: $(STAMP) ## the smoke suite with the newest versions that pyproject.toml allows (.venv-newest)
	.ci/bounds newest

upgrade: $(STAMP) ## pin the newest versions (constraints.txt; .ci/held.txt stays), then run the tests
	.ci/upgrade
	$(MAKE) --no-print-directory test

results: $(STAMP) ## run every method with every seed; write the records, and the tables and the picture in docs/
	$(PY) -m examples.studies.verify_prompts.results
	$(PY) -m examples.studies.verify_prompts.tables
	$(PY) -m examples.studies.verify_prompts.densities
	$(PY) -m examples.studies.verify_prompts.picture
	$(PY) -m examples.studies.seeds

docs: $(STAMP) ## the documentation as a site (build/site); any broken link or reference fails
	@rm -rf build/typing && mkdir -p build/typing/bayes_adapters
	@ln -s "$(CURDIR)"/bayes_adapters/* "$(CURDIR)/models" "$(CURDIR)/guides" build/typing/bayes_adapters/
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

notebooks: $(STAMP) ## run the notebooks and keep what they show
	$(THREADS) $(PY) -m examples.notebooks.run

benchmark: $(STAMP) ## time and memory of training and prediction, beside PEFT (runs/benchmark)
	$(PY) -m examples.benchmarks.speed --out runs/benchmark

cost: $(STAMP) ## time, memory and size of every family beside MeanField (results/cost.json, docs/which-when.md)
	$(THREADS) $(PY) -m examples.benchmarks.cost

gpu-check: $(STAMP) ## agreement, training, memory and time on a CUDA GPU (runs/gpu-check)
	$(PY) -m examples.benchmarks.gpu_check --out runs/gpu-check

format: $(STAMP) ## rewrite the sources as ruff formats them
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean: ## remove everything that make made, the environments included
	rm -rf .venv .venv-oldest .venv-newest build dist .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
