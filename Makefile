# Every target makes its own .venv when there is none. Variables:
#   PYTHON        interpreter to make the environment with (3.11 or newer)
#   TORCH_INDEX   index to take torch from, e.g. PyTorch's own CPU index, where PyPI's torch brings CUDA along
#   PROMPT        what `make imagine` draws
PYTHON ?= python3
TORCH_INDEX ?=
PROMPT ?= a red heart
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
WORKERS ?= 2

.PHONY: imagine serve test check soak bench setup clean

imagine: $(VENV)/.base
	@$(BIN)/sojourn imagine "$(PROMPT)"

serve: $(VENV)/.base
	@$(BIN)/sojourn serve

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) -q -m "not slow"

check: $(VENV)/.dev
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/mypy
	$(BIN)/python -m pytest -n $(WORKERS) -q
	$(BIN)/python docs/build.py --check
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python -m pip check

soak: $(VENV)/.dev
	SOJOURN_SOAK=1 $(BIN)/python -m pytest -q -s tests/test_jobs.py tests/test_store.py tests/test_http.py tests/test_http_doors.py tests/test_http_load.py tests/test_far.py tests/test_openai.py
	$(BIN)/python benchmarks/crowd.py
	$(BIN)/python benchmarks/soak.py

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/studio.py

setup: $(VENV)/.dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Sojourn needs Python 3.11 or newer, found %d.%d: make PYTHON=python3.11 ..." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# torch first and alone: an index for it then holds for nothing else.
$(VENV)/.torch: constraints.txt | $(VENV)/bin/python
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@touch $@

$(VENV)/.base: pyproject.toml $(VENV)/.torch
	$(PIP) --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.torch
	$(PIP) --editable ".[data,log,metrics,dev]"
	@touch $(VENV)/.base $@

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache
