# Everything runs from .venv, which is made here; `make help` lists the targets.
PYTHON ?= python3
BIN := .venv/bin
# Processes that share the files of fast tests: one for each core.
TESTERS ?= auto

# Packages are compiled when they are first imported (see below); where Python may not store that, every process that
# starts pays seconds for it.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test test-slow cluster-test check lint types ablation bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo     install and run the example sweep (generated data, no download of data or weights)"
	@echo "make test     install with the test extra and run the fast suite"
	@echo "make test-slow  what takes longer: real Ray clusters on this machine, several processes"
	@echo "make cluster-test  a cluster of hosts (Linux namespaces; root, iproute2, PostgreSQL, nftables): a quarter of an hour"
	@echo "make check    lint, types, tests"
	@echo "make ablation  what each part of the method is worth: hours; writes docs/results.md; needs the photographs"
	@echo "               of experiments/ablation_animals.yaml, which are not part of the project (README, 'What is varied')"
	@echo "make bench    time a training step, its parts, memory, loader, evaluation and sweeps: half an hour"
	@echo "make install  .venv alone"

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "boxseg needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv

# A stamp per set of extras: installing again takes no time unless the requirements changed. Python compiles a file when
# it is first imported; most never are.
.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e .
	@touch $@

.venv/.installed-test: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[test]'
	@touch $@ .venv/.installed

install: .venv/.installed

demo: .venv/.installed
	$(BIN)/boxseg sweep experiments/qam.yaml --new

test: .venv/.installed-test
	$(BIN)/python -m pytest -n $(TESTERS) --dist loadfile -m "not slow and not gpu and not cluster"

test-slow: .venv/.installed-test
	$(BIN)/python -m pytest -m "slow and not gpu"

cluster-test: .venv/.installed-test
	$(BIN)/python -m pytest -rs --durations=0 --durations-min=5 tests/slow/test_hosts.py tests/slow/test_network_drills.py

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed-test
	$(BIN)/mypy

check: lint types test

ablation: .venv/.installed
	$(BIN)/boxseg sweep experiments/ablation.yaml
	$(BIN)/boxseg sweep experiments/ablation_animals.yaml
	$(BIN)/python benchmarks/results.py "$$(ls -d runs/ablation/*/ | tail -1)" "$$(ls -d runs/ablation_animals/*/ | tail -1)" --page docs/results.md

bench: .venv/.installed
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
