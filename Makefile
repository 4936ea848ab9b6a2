# make up      a virtual environment of its own, a light install, then `press up` (ARGS=--once: and stop)
# make test    everything the tests need, then the tests (SLOW=1: the slow ones too; JOBS=0: in one process;
#              ARGS=…: passed to pytest)
# make help    the rest
#
# Needs Python 3.11 or newer and nothing else. Works with the make of macOS (3.81), so no newer syntax here.

VENV := .venv
BIN := $(VENV)/bin
LIGHT := $(VENV)/.installed-light
DEV := $(VENV)/.installed-dev
SOURCES := pyproject.toml constraints.txt

# PYTHON=… chooses the interpreter of the virtual environment; otherwise the first of these that is new enough.
PYTHONS := $(or $(PYTHON),python3.13 python3.12 python3.11 python3)

# uv reads neither pip.conf nor pip's variables: hand on the ones that say where packages are.
empty :=
space := $(empty) $(empty)
comma := ,
ifneq ($(strip $(PIP_FIND_LINKS)),)
export UV_FIND_LINKS := $(subst $(space),$(comma),$(strip $(PIP_FIND_LINKS)))
endif
ifneq ($(strip $(PIP_INDEX_URL)),)
export UV_DEFAULT_INDEX := $(PIP_INDEX_URL)
endif
ifneq ($(strip $(PIP_EXTRA_INDEX_URL)),)
export UV_INDEX := $(PIP_EXTRA_INDEX_URL)
# As pip does it: the best version of all indexes, not the first index that has any.
export UV_INDEX_STRATEGY := unsafe-best-match
endif

# Compiled at install: the first start without bytecode takes up to four times as long.
INSTALL = $(BIN)/uv pip install $(if $(CI),--quiet) --python $(BIN)/python --compile-bytecode \
	--constraints constraints.txt
COMPILE_OWN = $(BIN)/python -m compileall -q src/pressroom

ifneq ($(or $(SLOW),$(filter true,$(CI))),)
SELECTION := -m "slow or not slow"
endif

# A file stays with one worker (tests/conftest.py says which). JOBS=0: all in one process, as a debugger wants it.
JOBS := logical
SPREAD = -n $(JOBS) --maxprocesses 4 --dist loadfile

.PHONY: up setup test check bench docs lock soak soak-kill clean help

up: $(LIGHT)
	@$(BIN)/press up $(ARGS)

setup: $(DEV)

test: $(DEV)
	@$(BIN)/python -m pytest $(SELECTION) $(SPREAD) $(ARGS)

check: $(DEV)
	@$(BIN)/ruff format --check --quiet . || { echo "Run: $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/python scripts/docs.py --check

bench: $(DEV)
	@set -e; for benchmark in benchmarks/[a-z]*.py; do \
		echo "== $$benchmark --quick"; $(BIN)/python "$$benchmark" --quick; \
	done

docs: $(DEV)
	@$(BIN)/python scripts/docs.py

lock: $(BIN)/uv
	@scripts/lock

# Mixed load on a server whose engines die, MINUTES long; fails when anything grows or an answer is wrong.
soak: $(DEV)
	@$(BIN)/python benchmarks/soak.py --minutes $(or $(MINUTES),20) $(ARGS)

# What kills the main job at random moments, over and over; CI does it once. Stops at the first round that fails.
soak-kill: $(DEV)
	@round=1; while [ $$round -le $(or $(ROUNDS),10) ]; do \
		echo "== round $$round of $(or $(ROUNDS),10)"; \
		$(BIN)/python -m pytest -m slow -k killed $(ARGS) || exit 1; round=$$((round + 1)); \
	done

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests scripts benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile
	@echo "make setup   what developing needs"
	@echo "make check   format, lint, types, generated docs"
	@echo "make bench   every benchmark, the quick form"
	@echo "make docs    write docs/settings.md, docs/cli.md and CHANGELOG.md anew"
	@echo "make soak    mixed load while engines die, MINUTES=20; fails when memory or descriptors grow"
	@echo "make soak-kill  kill the main job at random moments, ROUNDS=10 times fifty"
	@echo "make lock    pin the dependencies anew (UPGRADE=1: the newest of each)"
	@echo "make clean   remove what make made; never a workspace"

$(BIN)/python:
	@for python in $(PYTHONS); do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
			echo "$$("$$python" --version) -> $(VENV)"; \
			"$$python" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; exit 0; \
		fi; \
	done; \
	echo "No Python 3.11 or newer among: $(PYTHONS)." >&2; \
	echo "Install one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1

$(BIN)/uv: | $(BIN)/python
	@# A venv whose making was killed half-way has no pip yet.
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv

$(LIGHT): $(SOURCES) | $(BIN)/uv
	@$(INSTALL) --editable '.[grpc]'
	@$(COMPILE_OWN)
	@touch $@

$(DEV): $(SOURCES) | $(BIN)/uv
	@$(INSTALL) --editable '.[dev,clients]'
	@$(COMPILE_OWN)
	@touch $@ $(LIGHT)
