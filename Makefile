# make quickstart   .venv, install, the whole pipeline on the embedded default
# make test         .venv, install, all tests, lint, types
# make coverage     .venv, install, all tests under coverage, which takes nearly twice as long; fails below 85 %
# make site         .venv, install, the documentation as pages: site/index.html
# make test-lowest  .venv-lowest, install the oldest versions that pyproject.toml allows, all tests
# make test-examples  the examples for other libraries, each in an environment of its own in .venv-examples
#
# PYTHON       the Python 3.11 that makes the environment
# TORCH_INDEX  another index for torch; the default index's torch brings CUDA on Linux (some GB). CPU only:
#              make quickstart TORCH_INDEX=https://download.pytorch.org/whl/cpu
# TORCH        test-lowest only: the version of torch, where the one in constraints-lowest.txt cannot be installed:
#              make test-lowest TORCH=2.13.0
# EXTRAS       what is installed beside the package: dev, or dev,environments,serving for all tests
# ARGS         passed on: make quickstart ARGS="--dry-run", make test ARGS="-k buffer"

PYTHON ?= python3.11
TORCH_INDEX ?=
TORCH ?=
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
EXTRAS ?= dev
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOWEST := .venv-lowest
EXAMPLES := .venv-examples
PACKAGES_openai-agents := openai-agents
PACKAGES_langgraph := langchain langchain-openai langchain-mcp-adapters
PACKAGES_gepa := dspy
SPREAD := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help install quickstart test coverage test-lowest lint format types unit docs site clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed -n '1,/^$$/p;/^PYTHON/,/^$$/p'

install: $(STAMP)

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is not Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c $(CONSTRAINTS) -e '.[$(EXTRAS)]'
	touch $@

quickstart: install
	$(BIN)/retro run configs/quickstart.yaml $(ARGS)

test: lint types unit

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy --strict retro

unit: install
	$(BIN)/python -m pytest $(SPREAD) $(ARGS)

coverage: install
	$(BIN)/python -m pytest $(SPREAD) --cov=retro --cov-report=term --cov-fail-under=85 $(ARGS)

test-lowest:
	mkdir -p $(LOWEST)
	sed '$(if $(TORCH),s/^torch==.*/torch==$(TORCH)/)' constraints-lowest.txt > $(LOWEST)/constraints.txt
	$(MAKE) install VENV=$(LOWEST) CONSTRAINTS=$(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip check
	$(LOWEST)/bin/python -m pytest $(SPREAD) $(ARGS)

test-examples: install $(EXAMPLES)/openai-agents.installed $(EXAMPLES)/langgraph.installed $(EXAMPLES)/gepa.installed
	RETRO_EXAMPLES_OPENAI_AGENTS=$(EXAMPLES)/openai-agents/bin/python \
	RETRO_EXAMPLES_LANGGRAPH=$(EXAMPLES)/langgraph/bin/python \
	RETRO_EXAMPLES_GEPA=$(EXAMPLES)/gepa/bin/python \
		$(BIN)/python -m pytest tests/pipeline/test_library_examples.py $(ARGS)

$(EXAMPLES)/%.installed:
	$(PYTHON) -m venv $(EXAMPLES)/$*
	$(EXAMPLES)/$*/bin/python -m pip install --disable-pip-version-check $(PACKAGES_$*)
	touch $@

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install
	$(BIN)/python scripts/write_config_docs.py
	$(BIN)/python -m scripts.write_bases_docs

site: install
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[site]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

clean:
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage coverage.xml
