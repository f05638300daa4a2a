# plastax: every target sets up .venv by itself; a second start installs nothing. `make help` lists the targets.
.DEFAULT_GOAL := help
.PHONY: help setup run claims data test test-all lint types bench report docs clean

experiments := $(sort $(filter-out claims _%,$(basename $(notdir $(wildcard experiments/*.py)))))
benchmarks  := $(sort $(filter-out _%,$(basename $(notdir $(wildcard experiments/bench/*.py)))))
python      := .venv/bin/python

# Names are taken as they are written: a directory may be called $(shell ...) or `...`, and nothing in it is run. Recipes
# get them as variables of the shell. ARGS are words of a command line, and so is what stands in them.
override EXP    := $(value EXP)
override BENCH  := $(value BENCH)
override RUN    := $(value RUN)
override NAME   := $(value NAME)
override ACCEL  := $(value ACCEL)
override PRESET := $(or $(value PRESET),default)
override PYTHON := $(value PYTHON)
export RUN NAME PRESET PYTHON
quoted = '$(subst ','\'',$(1))'

# What jax runs on: ACCEL if given, else cuda13 where nvidia-smi lists a GPU, else cpu.
ifeq ($(strip $(ACCEL)),)
  accel := $(shell nvidia-smi -L 2>/dev/null | grep -q '^GPU ' && echo cuda13 || echo cpu)
else ifneq ($(filter-out cpu cuda13 tpu,$(ACCEL))$(word 2,$(ACCEL)),)
  $(error ACCEL='$(ACCEL)' is not an accelerator; allowed: cpu, cuda13, tpu)
else
  accel := $(strip $(ACCEL))
endif
stamp := .venv/.plastax-$(accel)

# Tests compile more than they compute, each on one core: a process a core, and every file in one of them.
workers := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

ifeq ($(accel),cpu)
  JAX_PLATFORMS ?= cpu
  export JAX_PLATFORMS
endif
OPENBLAS_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS

# Of the names $(2) the one nearest to $(1), as a question; nothing if none is near.
near = $(patsubst %, (did you mean '%'?),$(shell $(call quoted,$(or $(PYTHON),python3)) -c 'import difflib, sys; print(*difflib.get_close_matches(sys.argv[1], sys.argv[2:], 1))' $(call quoted,$(1)) $(2) 2>/dev/null))

# A setting that cannot be used is refused before anything is installed.
ifneq ($(filter run,$(MAKECMDGOALS)),)
  ifneq ($(words $(EXP))$(filter-out $(experiments),$(EXP)),1)
    $(error EXP='$(EXP)' is not an experiment$(call near,$(EXP),$(experiments)); allowed: $(experiments))
  endif
endif
ifneq ($(filter bench,$(MAKECMDGOALS)),)
  ifneq ($(filter-out $(benchmarks),$(BENCH)),)
    $(error BENCH='$(BENCH)' is not a benchmark$(call near,$(BENCH),$(benchmarks)); allowed: $(benchmarks))
  endif
endif
ifneq ($(filter report,$(MAKECMDGOALS)),)
  ifeq ($(strip $(RUN)),)
    $(error RUN is not set; give the directory of a run: make report RUN=runs/<experiment>/<run id>)
  endif
endif

ifneq ($(filter data,$(MAKECMDGOALS)),)
  ifeq ($(strip $(NAME)),)
    $(error NAME is not set; give the name of a data set: make data NAME=mnist (plastax list data lists them))
  endif
endif

help:  ## list the targets and their settings
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "Experiments: $(experiments)"
	@echo "Settings:    ACCEL=cpu|cuda13|tpu (here, when not given: $(accel)), PYTHON=/path/to/python3.11 or 3.12"

$(stamp): pyproject.toml uv.lock
	@.ci/setup $(accel)

$(stamp)-bench $(stamp)-docs $(stamp)-brax: $(stamp)-%: pyproject.toml uv.lock
	@.ci/setup $(accel) $*

setup: $(stamp)  ## create or update .venv (uv if present, else venv + pip; an NVIDIA GPU gets CUDA 13)

run: $(stamp)$(if $(filter slippery_ant,$(EXP)),-brax)  ## run an experiment: make run EXP=rl_gymnax ARGS="--preset smoke" (ARGS="--help": its settings)
	@$(python) -m plastax run $(EXP) $(ARGS)

claims: $(stamp)  ## test the paper's claims: make claims PRESET=smoke|default|accelerator ARGS="--claims 2 3"
	@$(python) -m experiments.claims --preset "$$PRESET" $(ARGS)

data: $(stamp)  ## fetch a data set ahead of time and print its card: make data NAME=mnist
	@$(python) -m plastax data "$$NAME" $(ARGS)

test: $(stamp)$(if $(PLASTAX_TEST_COMPLETE),-brax)  ## run the tests that are not slow; ARGS go to pytest
	$(python) -m pytest $(workers) $(ARGS)

test-all: $(stamp)  ## run all tests
	$(python) -m pytest $(workers) -m "" $(ARGS)

lint: $(stamp)  ## ruff: rules and format
	$(python) -m ruff check .
	$(python) -m ruff format --check .

types: $(stamp)  ## mypy
	$(python) -m mypy

bench: $(stamp)-bench$(if $(filter ant,$(or $(BENCH),$(benchmarks))), $(stamp)-brax)  ## run the benchmarks, or one: make bench BENCH=rl
	@set -e; for name in $(or $(BENCH),$(benchmarks)); do $(python) -m experiments.bench.$$name $(ARGS); done

report: $(stamp)  ## write a run's report and print its table: make report RUN=runs/<experiment>/<run id>
	@$(python) -m plastax report "$$RUN" $(ARGS)

docs: $(stamp)-docs  ## write a reference of the public names from their docstrings into build/docs
	@$(python) -W ignore -m pdoc --docformat google --output-directory build/docs plastax plastax.types
	@echo "build/docs/index.html"

clean:  ## remove .venv, caches and builds; never runs/
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist *.egg-info
	find plastax experiments tests .ci -name __pycache__ -type d -prune -exec rm -rf {} +
