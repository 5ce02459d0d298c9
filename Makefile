# make demo   the whole study on a CPU, from an empty machine with Python 3.11: corpus, cold start, GRPO, evaluation
# make test   all tests, in the same environment, two at once; make test-fast: those without Ray, vLLM or a training
# make bench  what is decoded, processed and encoded how often, and how long it takes
# make gpu-check   what a GPU has yet to show, on one page (docs/gpu.md); without a GPU in a form for the CPU
# make docs   the pages of docs/ as a site in outputs/site, with strict links
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-fast lint bench gpu-check docs clean
.DELETE_ON_ERROR:

$(VENV)/.installed: requirements-cpu.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "Python 3.11 is needed: set PYTHON=/path/to/python3.11 (found: $$($(PYTHON) --version 2>&1))" >&2; exit 1; }
	@echo "installing the CPU stack into $(VENV) (1.5 GB to download, a few minutes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --no-deps -r requirements-cpu.txt
	$(BIN)/python -m pip install -qq --no-deps --no-build-isolation -e .
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python -m verl_omni demo $(ARGS)

# Two at once; each computes with one thread, and vLLM binds none to the core that it would choose in every engine. Ray's
# workers, whose trainings take longest, would otherwise leave the CPU to all others (niceness 15).
PYTEST := OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind RAY_worker_niceness=0 \
  PYTHONPATH=$(CURDIR)/tests/startup $(BIN)/python -m pytest \
  --numprocesses 2 --dist loadscope --no-loadscope-reorder

test: $(VENV)/.installed lint
	$(PYTEST) --durations 25

test-fast: $(VENV)/.installed
	$(PYTEST) -m "not slow"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

gpu-check: # in the environment that is there: a GPU's is not made here
	$(or $(wildcard $(BIN)/python),python) -m benchmarks.gpu_check $(ARGS)

docs:
	$(PYTHON) -m venv outputs/docs-venv
	outputs/docs-venv/bin/python -m pip install -qq -r docs/requirements.txt
	outputs/docs-venv/bin/mkdocs build --strict

clean:
	rm -rf $(VENV) outputs build *.egg-info
