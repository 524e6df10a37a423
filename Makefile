# On another machine: make setup TORCH="torch" PIP_FLAGS="--extra-index-url <a CPU wheel index>"
PYTHON ?= python3
TORCH ?= torch==2.13.0
PIP_FLAGS ?=
BIN := .venv/bin
SOURCES := $(wildcard edge_sdk/lean/*.c edge_sdk/lean/*.h)

.PHONY: setup demo test check fix bench serve clean

setup: .venv/ready  ## create .venv with everything the demo and the tests need

.venv/ready: pyproject.toml $(SOURCES)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) "$(TORCH)"
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --editable ".[dev]"
	touch $@

demo: setup  ## the main job: a fleet fine-tunes a real 4-bit LLM on this machine
	$(BIN)/python -m demo

test: setup  ## all tests, on as many as four cores
	$(BIN)/python -m pytest --numprocesses=logical --maxprocesses=4 --dist=worksteal

check: setup  ## lint, format, types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/mypy examples/*/*.py

fix: setup  ## format and mend what ruff can
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

bench: setup  ## every benchmark, one after the other
	$(BIN)/python -m bench.wire_bytes
	$(BIN)/python -m bench.wire_fuzz
	$(BIN)/python -m bench.plan_accuracy
	$(BIN)/python -m bench.plan_enforced
	$(BIN)/python -m bench.train_step
	$(BIN)/python -m bench.host_impact
	$(BIN)/python -m bench.inference
	$(BIN)/python -m bench.server_load
	$(BIN)/python -m bench.update_bytes
	$(BIN)/python -m bench.recovery
	$(BIN)/python -m bench.large_fleet
	$(BIN)/python -m bench.study

serve: setup  ## a server on loopback with its state in .server
	$(BIN)/edge-server serve --state .server

clean:  ## remove what make created, but not your data
	rm -rf .venv .demo build *.egg-info
