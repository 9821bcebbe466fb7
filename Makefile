# Everything a newcomer needs: `make demo` and `make test`. Python 3.11 or newer, pip, git and make must be there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
FIT := $(PY) -m firered_lit fit --recipe recipes/tiny
DEMO ?= .demo
STEPS ?= 600
export HF_HUB_DISABLE_TELEMETRY = 1
export MLFLOW_DISABLE_TELEMETRY = true

.PHONY: demo chain-supervised test slow lint format clean
.DEFAULT_GOAL := demo

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("firered_lit needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(DEMO)/data/data.json: | $(VENV)/.installed
	$(PY) -m datamodules.synthetic --out $(DEMO)/world --count 96
	$(PY) -m firered_lit prepare --recipe recipes/tiny/prepare.yaml source=$(DEMO)/world out=$(DEMO)/data

demo: $(VENV)/.installed  ## draw a small world of edits, train the tiny editor on it, export it, edit a picture
	rm -rf $(DEMO)
	@$(MAKE) --no-print-directory $(DEMO)/data/data.json
	$(FIT)/sft.yaml data.root=$(DEMO)/data run.dir=$(DEMO)/run trainer.max_steps=$(STEPS)
	$(PY) -m firered_lit export --run $(DEMO)/run --out $(DEMO)/model
	$(PY) -m firered_lit edit --model $(DEMO)/model --image $(DEMO)/world/color/images/00000_source0.png \
		--prompt "Change the background to red" --out $(DEMO)/edited.png --steps 8 --seed 0 --guidance 1
	@echo; cat $(DEMO)/run/summary.txt
	@echo "model       $(DEMO)/model"; echo "edited      $(DEMO)/edited.png"

chain-supervised: $(VENV)/.installed $(DEMO)/data/data.json  ## pretraining -> continued pretraining -> SFT, tiny
	rm -rf $(DEMO)/chain
	$(FIT)/pretrain.yaml data.root=$(DEMO)/data run.dir=$(DEMO)/chain/pretrain
	$(FIT)/continued_pretrain.yaml data.root=$(DEMO)/data run.dir=$(DEMO)/chain/continued run.start_from=$(DEMO)/chain/pretrain
	$(FIT)/sft.yaml data.root=$(DEMO)/data run.dir=$(DEMO)/chain/sft run.start_from=$(DEMO)/chain/continued

test: $(VENV)/.installed  ## every quick test
	$(PY) -m pytest -n 2 --dist loadfile

slow: $(VENV)/.installed  ## the long proofs
	$(PY) -m pytest -m slow

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(DEMO) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
