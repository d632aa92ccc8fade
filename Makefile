# make demo    generate images with the bundled models (installs into .venv first)
# make test    run the tests               make check   lint, types, import floors
# make fmt     format the code             make bench   time and memory beside diffusers and others
# make fuzz    give the file readers 20,000 damaged files (some minutes)
# make soak    kill a run of a hundred images fifty times (some minutes)
# make test-lowest    run the tests with the lowest declared version of every dependency
#
# PYTHON=python3.12 picks the interpreter, VENV=elsewhere the virtual environment.

VENV ?= .venv
PYTHON ?=
PROMPT ?= a red apple on a blue background

BIN := $(VENV)/bin
CANDIDATES := $(PYTHON) python3 python3.13 python3.12 python3.11 python3.10 python3.14 python

# An environment that was moved, or whose interpreter was removed, is made again.
STALE := $(shell test ! -e '$(VENV)' || { test "$$(cat '$(VENV)/.place' 2>/dev/null)" = "$$(pwd)" \
	&& '$(BIN)/python' -c '' 2>/dev/null; } || rm -f '$(VENV)/.place' '$(VENV)/.run' '$(VENV)/.test')

.PHONY: demo test test-lowest check fmt bench fuzz soak

demo: $(VENV)/.run
	'$(BIN)/ldm' txt2img --prompt '$(PROMPT)'
	@echo "The images are in $$(pwd)/outputs/txt2img-samples"
	'$(BIN)/python' scripts/demo.py

test: $(VENV)/.test
	'$(BIN)/python' -m pytest -n 2 --dist loadfile

test-lowest:
	$(MAKE) VENV='$(VENV)-lowest' '$(VENV)-lowest/.place'
	'$(VENV)-lowest/bin/python' tests/lowest_versions.py > '$(VENV)-lowest/lowest.txt'
	PIP_CONSTRAINT='$(VENV)-lowest/lowest.txt' $(MAKE) VENV='$(VENV)-lowest' test

check: $(VENV)/.test
	'$(BIN)/python' -m ruff check .
	'$(BIN)/python' -m ruff format --check .
	'$(BIN)/python' -m mypy
	'$(BIN)/python' -m pytest -q tests/test_floors.py

fmt: $(VENV)/.test
	'$(BIN)/python' -m ruff check --fix .
	'$(BIN)/python' -m ruff format .

soak: $(VENV)/.test
	LDM_SOAK=1 '$(BIN)/python' -m pytest -q tests/e2e/test_hard_conditions.py

fuzz: $(VENV)/.test
	LDM_FUZZ_CASES=800 LDM_FUZZ_LEAST=20000 '$(BIN)/python' -m pytest -q tests/fuzz

bench: $(VENV)/.test
	'$(BIN)/python' -m benchmarks

$(VENV)/.place:
	@for python in $(CANDIDATES); do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then \
			echo "Making '$(VENV)' with $$("$$python" --version)"; \
			if "$$python" -m venv --clear '$(VENV)'; then pwd > '$@'; exit 0; fi; \
			rm -rf '$(VENV)'; \
			echo "make: $$python cannot make a virtual environment: install its venv module" \
				"(on Debian and Ubuntu the package python3-venv)" >&2; \
			exit 1; \
		fi; \
	done; \
	echo "make: no Python 3.10 or newer found: install one, or name it with" \
		"'make PYTHON=/path/to/python3 ...'" >&2; \
	exit 1

$(VENV)/.run: pyproject.toml | $(VENV)/.place
	@echo "Installing ldm and PyTorch into '$(VENV)': up to a few GB, some minutes the first time"
	'$(BIN)/python' -m pip install --disable-pip-version-check -e .
	@touch '$@'

$(VENV)/.test: pyproject.toml | $(VENV)/.place
	@echo "Installing ldm and its test tools into '$(VENV)': up to a few GB, some minutes the first time"
	'$(BIN)/python' -m pip install --disable-pip-version-check -e '.[test]'
	@touch '$@' '$(VENV)/.run'
