# `make demo` and `make test` create the environment that they need, and can be repeated at any time.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: demo demo-all test test-fast chaos lint lab sync lock clean help

help:  ## print this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo: $(BIN)/.installed  ## run the demo on synthetic data: environment, notebooks, tables and figures
	$(BIN)/python run_all.py --profile demo --jobs $(JOBS)

demo-all: $(BIN)/.installed  ## run the demo on every dataset
	$(BIN)/python run_all.py --profile demo --datasets all --jobs $(JOBS)

test: $(BIN)/.installed  ## run every test, also the notebooks on synthetic data (in three processes, of which one mostly waits)
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test-fast: $(BIN)/.installed  ## run the unit tests only: no notebooks, batches or browsers
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not notebooks and not slow"

chaos: $(BIN)/.installed  ## kill batches a hundred times at random moments and print a table of the results (half an hour)
	$(BIN)/python tests/chaos

lint: $(BIN)/.installed  ## run the checks of CI and pre-commit
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify --keep-id $$(git ls-files '*.ipynb')
	$(BIN)/python run_all.py --sync --check

lab: $(BIN)/.installed  ## open the start page in JupyterLab
	JUPYTER_CONFIG_PATH=.jupyter $(BIN)/jupyter lab

sync: $(BIN)/.installed  ## rewrite the sibling notebooks from the canonical ones
	$(BIN)/python run_all.py --sync

lock: $(BIN)/.installed  ## regenerate constraints.txt from pyproject.toml
	$(BIN)/pip install -q uv
	printf 'torch==2.13.0\ntorchvision==0.28.0\n' > constraints.in
	$(BIN)/uv pip compile --universal --all-extras --no-annotate --no-header --python-version 3.10 --no-config \
	    -c constraints.in pyproject.toml -o constraints.txt
	rm constraints.in

clean:  ## delete the environment and the demo's outputs, but not data, weights or the paper's outputs
	rm -rf $(VENV) outputs/demo outputs/cache/demo *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Touched when the installation is complete, so that an interrupted one is repeated. Modules are compiled on all cores,
# where pip would use one, and without the packages' own tests, a quarter of all code.
$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "Python 3.10 or newer is needed; name one: make demo PYTHON=python3.12"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --no-compile -c constraints.txt -e ".[test]"
	$(BIN)/python -m compileall -q -j 0 -x '/tests?/' $(VENV) panderm_utils > /dev/null || true
	touch $@
