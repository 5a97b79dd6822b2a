# Every target first creates what it needs: a virtual environment in .venv with the pinned packages of constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: help demo test test-slow test-browser chaos check bench docs install clean

help:
	@echo "make install       sets up .venv, about 7 GB in 4 minutes; the other targets do it where it is missing"
	@echo "make demo          runs the whole pipeline on this machine: data, doctor, shards, training, evaluation, registry"
	@echo "make test          runs the test suite (minutes)"
	@echo "make test-slow     runs the tests that train up to a required AP, and other long tests"
	@echo "make test-browser  tests the page in a browser; needs /usr/bin/chromium"
	@echo "make chaos         breaks processes, nodes, cables, disks and servers; reports what was lost and for how long"
	@echo "make check         checks format, lint and types"
	@echo "make bench         measures ratios against plain libraries"
	@echo "make docs          builds the documentation site in build/site"

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) with the packages of constraints.txt: about 7 GB and 4 minutes, once."
	@$(PYTHON) -m venv $(VENV)
	@# Twice quiet, pip shows errors alone, and no warning for each package that one of several indexes does not have.
	@( while sleep 20 >/dev/null 2>&1 && kill -0 $$$$ 2>/dev/null; do echo "   pip is still at it"; done ) & ticker=$$!; \
	trap "kill $$ticker" EXIT INT TERM; \
	$(BIN)/pip install --quiet --quiet --upgrade pip && \
	$(BIN)/pip install --quiet --quiet --editable '.[demo,dev]' --constraint constraints.txt
	@touch $@
	@echo "$(VENV) is ready. For the command posefleet: source $(VENV)/bin/activate"

demo: $(READY)
	$(BIN)/python jobs/demo.py

test: $(READY)
	@# Without bytecode files, each of a hundred processes compiles posefleet anew.
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-slow: $(READY)
	$(BIN)/pytest -m slow --timeout 3600

test-browser: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m browser

chaos: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/cluster -m ""

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -p posefleet
	$(BIN)/mypy docs/site/hooks.py

bench: $(READY)
	$(BIN)/python tests/bench/bench_all.py

docs: $(READY)
	@# The variable leaves out a note of the theme about its own future.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs --quiet build --strict
	@echo "Open build/site/index.html, or, to search too: $(BIN)/python -m http.server --directory build/site"

clean:
	rm -rf $(VENV) runs build *.egg-info
