# Every target sets up what it needs: only Python (3.11 to 3.13) and make have to be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Set-up is repeated when the declared dependencies or the interpreter change, and not otherwise.
WANTED := $(shell { $(PYTHON) --version; cat pyproject.toml; } | cksum | cut -d' ' -f1)
# Tests run side by side; a worker takes over what another has not come to yet, from the end of
# its list, so that most tests of one file share what they set up.
WORKERS ?= logical
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal

# Hundreds of processes are started by the tests, and would compile every module of ours anew.
unexport PYTHONDONTWRITEBYTECODE

RENDERER := src/diptych/gallery/page/renderer.js

.PHONY: help setup renderer demo test lint check slow bench bench-peers docs site site-links fix clean

help:
	@echo "make demo    learn from built-in photographs and write runs/demo/report.html"
	@echo "make test    all tests"
	@echo "make check   format, lint, types, import direction and the fast tests"
	@echo "make lint    the same without tests"
	@echo "make slow    only the slow tests"
	@echo "make bench   every benchmark, quickly; tables on the screen"
	@echo "make bench-peers  side by side with other libraries, for hours; BENCH_FLAGS=--quick, minutes"
	@echo "make docs    write docs/settings.md anew"
	@echo "make site    build the documentation to build/site; a warning or a dead link is an error"
	@echo "make site-links   ask whether the links to other sites still lead somewhere"
	@echo "make fix     mend format and lint where that can be done by itself"
	@echo "make renderer  what draws the map of the gallery; needs npm"
	@echo "make setup   the virtual environment for all of these"

$(VENV)/runtime-$(WANTED):
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -e .
	@rm -f $(VENV)/runtime-*
	@touch $@

$(VENV)/dev-$(WANTED): $(VENV)/runtime-$(WANTED)
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[dev]'
	@rm -f $(VENV)/dev-*
	@touch $@

setup: $(VENV)/dev-$(WANTED)

renderer: $(RENDERER)

$(RENDERER): $(wildcard renderer/*.js renderer/*.mjs renderer/*.cjs renderer/*.json)
	cd renderer && npm ci --ignore-scripts --no-audit --no-fund
	node renderer/build.mjs

demo: $(VENV)/runtime-$(WANTED)
	$(BIN)/diptych demo

test: setup
	$(PYTEST)

lint: setup
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint
	$(PYTEST) -m "not slow"

slow: setup
	$(PYTEST) -m slow

# Not by a flag alone: these need a GPU, the environment of another library, photographs with boxes,
# sets to learn from, or a run that has ended; and scale_tables.py measures nothing.
ALONE := $(addprefix benchmarks/,gpu.py peer_own_photographs.py dense.py verdict_population.py course.py scale_tables.py)

bench: setup
	@for script in $(filter-out $(ALONE),$(wildcard benchmarks/*.py)); do $(BIN)/python $$script --quick || exit 1; done

# Other libraries are installed into environments of their own, seven gigabytes each. BENCH_FLAGS may
# be --quick, or --data FOLDER with cifar10/ in it.
PEERS ?= build/peers/environments

bench-peers: setup
	$(BIN)/python benchmarks/peers all --environments $(PEERS) $(BENCH_FLAGS)

docs: setup
	$(BIN)/python -m diptych.cli.help > docs/settings.md

SPHINX := $(BIN)/python -m sphinx --quiet --fail-on-warning -d build/doctrees

site: setup
	$(SPHINX) -b html docs build/site
	$(BIN)/python docs/check_links.py build/site
	@echo "build/site/index.html"

site-links: setup
	$(SPHINX) -b linkcheck docs build/links

fix: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
