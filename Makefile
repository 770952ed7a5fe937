# Everything a developer runs, one command each. `make setup` is part of all of them and does nothing when it is up to date.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH := $(shell sed -n 's/^torch==/&/p' constraints.txt)
TRL := $(shell sed -n 's/^peer = \["\(trl==[^"]*\)"\].*/\1/p' pyproject.toml)
PEER := $(VENV)/peer
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup quickstart quickstart-rlaif chain chain-stories screenshot test test-slow test-real test-peer bench mutate check check-format check-lint check-types check-layers format clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*  ## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY)  ## Install everything into .venv (PYTHON=python3.12 chooses the interpreter)

# torch comes first and alone, so that no later requirement can choose another one. deepspeed exists as source only and imports torch
# while it is built: an isolated build without torch compiles nothing ahead of time and needs no CUDA toolkit.
$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("lit_align needs Python 3.11 or later, $(PYTHON) is %d.%d: run `make setup PYTHON=python3.11`." % v[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) '$(TORCH)'
	DS_BUILD_OPS=0 $(PIP_INSTALL) --use-pep517 -e '.[dev]'
	@touch $@

quickstart: $(READY)  ## Align a tiny policy on the embedded world
	$(BIN)/lit-align quickstart

RLAIF := configs/experiment/rlaif
RLAIF_ANSWERS := $(BIN)/lit-align predict --config configs/algorithm/rloo.yaml --config $(RLAIF)/answers.yaml
quickstart-rlaif: $(READY)  ## The same, scored by a reward model that is trained on the way, of noisy ratings
	test -f runs/quickstart/policy/config.json || $(BIN)/lit-align quickstart
	rm -rf runs/quickstart-rlaif
	$(RLAIF_ANSWERS) --run runs/quickstart-rlaif/answers
	$(RLAIF_ANSWERS) --run runs/quickstart-rlaif/held-out --data.init_args.eval_prompts.init_args.path runs/quickstart/world/eval_prompts.jsonl \
		--data.init_args.eval_annotator.init_args.function lit_align.quickstart.rules.gold_score
	$(BIN)/lit-align fit --config configs/algorithm/reward_model.yaml --config $(RLAIF)/reward_model.yaml --run runs/quickstart-rlaif/reward
	$(BIN)/lit-align export runs/quickstart-rlaif/reward
	$(BIN)/lit-align fit --config configs/algorithm/dar_anchored.yaml --config configs/quickstart.yaml --config $(RLAIF)/dar.yaml \
		--run runs/quickstart-rlaif/aligned

# Comparisons, a reward model, PPO. 1: the folder of their files, 2: that of the runs, 3: the file of the world.
define after_demonstrations
	$(BIN)/lit-align predict --config configs/algorithm/rloo.yaml --config $(1)/answers.yaml --run $(2)/answers
	$(BIN)/lit-align fit --config configs/algorithm/reward_model.yaml --config $(1)/reward_model.yaml --run $(2)/reward
	$(BIN)/lit-align export $(2)/reward
	$(BIN)/lit-align fit --config configs/algorithm/ppo.yaml --config $(3) --config $(1)/ppo.yaml --run $(2)/ppo
endef

chain: $(READY)  ## Demonstrations, comparisons, a reward model, PPO: the classical chain on the embedded world, anew
	test -f runs/quickstart/policy/config.json || $(BIN)/lit-align quickstart
	rm -rf runs/chain
	$(call after_demonstrations,configs/experiment/chain,runs/chain,configs/quickstart.yaml)

STORIES := configs/experiment/chain_stories
chain-stories: export LIT_ALIGN_DATA := $(or $(LIT_ALIGN_DATA),$(realpath ../shared/data))
chain-stories: $(READY)  ## The same on stories260K and real stories, from the folder LIT_ALIGN_DATA
	@test -n "$$LIT_ALIGN_DATA" || { echo "No real data: set LIT_ALIGN_DATA to its folder. Nothing was run."; exit 1; }
	$(BIN)/python -m benchmarks.stories prepare
	rm -rf runs/chain-stories
	$(BIN)/lit-align fit --config configs/algorithm/sft.yaml --config $(STORIES)/sft.yaml --run runs/chain-stories/sft
	$(BIN)/lit-align export runs/chain-stories/sft
	$(call after_demonstrations,$(STORIES),runs/chain-stories,configs/experiment/stories.yaml)

screenshot: $(READY)  ## Run the quickstart and take the picture of TensorBoard in README (needs chromium and playwright)
	$(BIN)/lit-align quickstart
	$(BIN)/python scripts/screenshot.py runs/quickstart/aligned

test test-slow: export HF_HUB_OFFLINE := 1
test: $(READY)  ## Run the tests and doctests, in two processes, each file in one of them
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(READY)  ## Run the tests marked slow
	$(BIN)/python -m pytest -m slow

test-real: export HF_HUB_OFFLINE := 1
test-real: export LIT_ALIGN_DATA := $(or $(LIT_ALIGN_DATA),$(realpath ../shared/data))
test-real: $(READY)  ## Run the tests on real data, from the folder LIT_ALIGN_DATA
	@if [ -z "$$LIT_ALIGN_DATA" ]; then echo "No real data: set LIT_ALIGN_DATA to its folder. Nothing was tested."; \
	else $(BIN)/python -m pytest -m real || { code=$$?; [ $$code = 5 ] && echo "No test is marked real: nothing was tested." || exit $$code; }; fi

test-peer: export HF_HUB_OFFLINE := 1
test-peer: $(PEER)/.$(TRL)  ## Run the comparison with TRL, which is installed for it alone
	PYTHONPATH=$(PEER) $(BIN)/python -m pytest -m peer tests/peer

BENCH := --all
bench: export HF_HUB_OFFLINE := 1
bench: export LIT_ALIGN_DATA := $(or $(LIT_ALIGN_DATA),$(realpath ../shared/data))
bench: $(PEER)/.$(TRL)  ## Measure lit_align beside TRL on stories from the folder LIT_ALIGN_DATA: what docs/performance.md has and this code was not measured for
	PYTHONPATH=$(PEER) $(BIN)/python -m benchmarks.vs_trl $(BENCH)

# Beside the environment, not in it, so that nothing else sees it; what it depends on we have already.
$(PEER)/.$(TRL): $(READY)
	rm -rf $(PEER)
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --target $(PEER) '$(TRL)'
	@touch $@

mutate: $(READY)  ## Make the mistakes of scripts/mutations.toml, one at a time, and fail if no test notices (about 15 minutes on 2 cores)
	$(BIN)/python scripts/mutate.py

check: check-format check-lint check-types check-layers  ## Check format, lint, types and who imports whom (-k: all of them, whatever fails)

check-format: $(READY)
	$(BIN)/ruff format --check

check-lint: $(READY)
	$(BIN)/ruff check

check-types: $(READY)
	$(BIN)/pyright --pythonpath $(BIN)/python

check-layers: $(READY)
	$(BIN)/python -m pytest -q tests/test_layers.py

format: $(READY)  ## Format the code and mend what lint can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## Remove caches and builds; .venv and runs stay
	rm -rf build dist .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
