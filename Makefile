# Two commands for a newcomer: `make demo` and `make test`. Everything they need goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= studies/demo
JOBS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo quick test thorough browser slow fuzz docs lint figures newcomer oldest release clean
.DEFAULT_GOAL := demo

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python %d.%d found; landscape needs 3.11 or newer: make PYTHON=python3.12" % v[:2])'
	@$(PYTHON) -m venv $(VENV) || { echo 'Could not make a virtual environment with $(PYTHON); on Debian and Ubuntu: apt install python3-venv'; rm -rf $(VENV); exit 1; }

# A stamp each, so that a second `make demo` starts at once.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) (once, about a minute) ..."
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.installed
	@$(BIN)/landscape demo --out $(OUT)

quick: $(VENV)/.installed
	@$(BIN)/landscape demo --quick --out $(OUT)-quick

# Some four minutes on two cores; with `make thorough` and `make browser` it is what CI runs.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m "not slow and not thorough and not gpu and not browser"

# The tests that take seconds each: whole studies and pages, several processes, every recipe on a device.
thorough: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m "thorough and not slow and not gpu and not browser"

# The page in Chromium, which must be there.
browser: $(VENV)/.installed-dev
	@$(PIP) install -c constraints.txt -e '.[browser]'
	LANDSCAPE_REQUIRE_BROWSER=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m "browser and not slow"

slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "slow or gpu"

# Changed files of every kind for about an hour.
fuzz: $(VENV)/.installed-dev
	LANDSCAPE_FUZZ=20000 LANDSCAPE_FUZZ_SEED=1000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) tests/fuzz

# The site opens from disk: docs/_build/html/index.html. Its tutorials are run while it is built.
docs: $(VENV)/.installed
	@$(PIP) install -c constraints.txt -e '.[docs]'
	$(BIN)/python -m sphinx -b html -q -W --keep-going docs docs/_build/html
	$(BIN)/python docs/pages.py docs/_build/html
	@echo docs/_build/html/index.html

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/ty check

# Redraw the committed figures from the small data beside them.
figures: $(VENV)/.installed
	@for script in analysis_scripts/fig_*.py; do echo $$script; $(BIN)/python $$script || exit 1; done

# What a stranger does: fresh clone, new folder, empty pip cache, the two commands of the README.
newcomer:
	@folder=$$(mktemp -d) && git clone --quiet . $$folder/landscape && cd $$folder/landscape && \
	  export PIP_CACHE_DIR=$$folder/pip-cache && \
	  date && $(MAKE) demo && date && $(MAKE) demo && date && $(MAKE) test && date && \
	  echo "newcomer: make demo, make demo again and make test passed in $$folder"

# The oldest versions that pyproject.toml allows, in a fresh environment: do they compute the same?
# torch of that age comes with CUDA's libraries on Linux (about 3 GB).
oldest: $(VENV)/.installed
	@$(PIP) install uv
	@folder=$$(mktemp -d) && $(PYTHON) -m venv $$folder/venv && \
	  $(BIN)/uv pip compile --quiet --python-version 3.11 --resolution lowest-direct pyproject.toml -o $$folder/oldest.txt && \
	  $(BIN)/uv pip install --quiet --python $$folder/venv -r $$folder/oldest.txt . && \
	  $$folder/venv/bin/landscape check && $$folder/venv/bin/landscape demo --quick --out $$folder/demo && rm -rf $$folder

# By hand, on a clean tree: sdist and wheel, their metadata, the wheel in a fresh environment, and
# what it depends on (CycloneDX). Nothing is uploaded.
release: $(VENV)/.installed-dev
	@test -z "$$(git status --porcelain)" || { echo "Commit first: a release is what is committed."; exit 1; }
	@$(PIP) install -e '.[release]'
	@rm -rf dist && $(BIN)/python -m build --outdir dist . && $(BIN)/twine check --strict dist/*.whl dist/*.tar.gz
	@folder=$$(mktemp -d) && $(PYTHON) -m venv $$folder/venv && \
	  $$folder/venv/bin/python -m pip --quiet install -c constraints.txt dist/*.whl && \
	  cd $$folder && venv/bin/landscape check && venv/bin/landscape demo --quick --out demo && \
	  $(CURDIR)/$(BIN)/cyclonedx-py environment --pyproject $(CURDIR)/pyproject.toml --output-reproducible \
	    --of JSON -o $(CURDIR)/dist/sbom.json $$folder/venv/bin/python && rm -rf $$folder
	@ls dist

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .ruff_cache
