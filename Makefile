# The two commands are `make serve` and `make test`; each sets up what it needs, from a bare checkout.
#
# Variables, as in `make serve ARGS="--port 9000"`:
#   ARGS      what `make serve`, `make pytest` and `make torture` hand on
#   PYTHON    the Python, 3.11 or later, that makes the virtual environment
#   TORCH     which torch to install; "torch==2.13.0+cpu" is the CPU build, gigabytes smaller
#   PIP_ARGS  arguments of pip for torch alone, such as the --index-url that holds that build
#   IMAGE     the name of the container image

PYTHON ?= python3
TORCH ?= torch==2.13.0
IMAGE ?= verbatim
BIN := .venv/bin
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=all

.DEFAULT_GOAL := help
.PHONY: help serve test lint format pytest sanitize torture image clean

help: ## Show this list.
	@sed -n 's/^#   /  /p' Makefile
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

serve: .venv/runtime ## Start the server on the embedded model.
	$(BIN)/verbatim serve $(ARGS)

test: lint pytest ## Run every check: style, types, tests with their coverage.

lint: .venv/tools ## Check style and types.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The test processes' compute threads share the cores, and must not wait awake (see docs/decisions.md).
pytest: .venv/tools ## Run the tests, and fail below the floor of coverage; or those that ARGS names, without.
	GOMP_SPINCOUNT=1000 $(BIN)/pytest --numprocesses auto --dist worksteal $(or $(ARGS),--cov)

format: .venv/tools ## Rewrite the files in the house's style.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

sanitize: ## Run every native kernel with the sanitizers of addresses and undefined behaviour.
	mkdir -p build
	$(PYTHON) model/kernels/build.py build/check tests/model/kernels/check.cpp -O1 -g $(SANITIZERS)
	build/check

torture: .venv/tools ## Hold a server to docs/reliability.md, for half a day; ARGS="--rows R6 --scale 0.1" for less.
	$(BIN)/python -m bench.torture $(ARGS)

image: ## Build the container image.
	docker build --tag $(IMAGE) --build-arg TORCH="$(TORCH)" --build-arg PIP_ARGS="$(PIP_ARGS)" .

clean: ## Remove all that these targets made.
	rm -rf .venv .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -f model/kernels/*.so build/check
	find model server tests weights -name __pycache__ -prune -exec rm -rf {} +

# Stamps: set-up happens once, and again when pyproject.toml or the native kernels change.
KERNELS := hatch_build.py $(wildcard model/kernels/*.h model/kernels/*.cpp model/kernels/build.py)

.venv/runtime: pyproject.toml $(KERNELS)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install $(PIP_ARGS) "$(TORCH)"
	$(BIN)/pip install --editable .
	touch $@

.venv/tools: .venv/runtime
	$(BIN)/pip install --editable ".[test,train]"
	touch $@
