# Everything a newcomer needs: `make demo` and `make test`. Python 3.11 or newer, pip, git and make must be there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
FIT := $(PY) -m firered_lit fit --recipe recipes/tiny
DEMO ?= .demo
PHOTOS := $(DEMO)/photos
SEED ?= 0
LEARN ?= .learn
WORLD := $(PY) -m firered_lit fit --recipe recipes/world
PREPARE := $(PY) -m firered_lit prepare --recipe recipes/world/prepare.yaml
EVALUATE := $(PY) benchmarks/learning.py evaluate
CHAIN := $(DEMO)/chain
CHAIN_ROWS ?= 120
CHAIN_STEPS ?= 200
CHAIN_DPO ?= 60
CHAIN_NFT ?= 20
CHAIN_EVERY ?= 20
# of a stage: it goes on where it was, and starts where its folder is empty
CHAIN_FIT = $(FIT)/$(1).yaml run.dir=$(@D) run.resume=last checkpoint.every=$(CHAIN_EVERY)
export HF_HUB_DISABLE_TELEMETRY = 1
export MLFLOW_DISABLE_TELEMETRY = true

.PHONY: demo learn learn-from-scratch chain chain-supervised test slow lint notebooks format clean
.DEFAULT_GOAL := demo

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("firered_lit needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# Edits of photographs, by a LoRA on the weights of the package; each line is a command that a user would type.
demo: $(VENV)/.installed  ## teach the shipped weights two edits of photographs, and show them before and after
	rm -rf $(PHOTOS)
	$(PY) -m datamodules.photos --out $(PHOTOS)/rows --count 640 --seed $(SEED)
	$(PY) -m firered_lit prepare --recipe recipes/world/prepare.yaml source=$(PHOTOS)/rows/edits.jsonl out=$(PHOTOS)/data
	$(PY) -m firered_lit fit --recipe recipes/world/photos.yaml data.root=$(PHOTOS)/data run.dir=$(PHOTOS)/run \
		stage.seed=$(SEED) data.seed=$(SEED)
	$(PY) -m firered_lit export --run $(PHOTOS)/run --out $(PHOTOS)/lora
	$(PY) -m firered_lit edit --model world --lora $(PHOTOS)/lora --image $(PHOTOS)/rows/portrait.png \
		--prompt "Print it as a cyanotype" --out $(PHOTOS)/edited.png --steps 8 --guidance 1 --seed $(SEED)
	$(PY) benchmarks/photo_edits.py --lora $(PHOTOS)/lora --out $(PHOTOS)/before_after.jpg --seed $(SEED)

# The whole way on the tiny model: raw rows -> curation -> five stages, each from the last one's output -> evaluation.
# What is there already is not made again: a chain that was stopped goes on where it was.
chain: $(CHAIN)/eval.done $(CHAIN)/edited.png  ## raw rows -> curation -> five stages -> evaluation, tiny, one MLflow experiment
	@for stage in $(CHAIN)/[1-5]_*; do echo; cat $$stage/summary.txt; done
	@echo; echo "corpus      $(CHAIN)/0_corpus/report/index.html (which rows were kept, and why the others were not)"
	@echo "rollouts    $(CHAIN)/5_nft/rollouts (the best and the worst edit of a group)"
	@echo "model       $(CHAIN)/model (its README.md says which data it saw)"
	@echo "edited      $(CHAIN)/edited.png (noise: the miniature shows that everything runs, not what it learns)"
	@echo "evaluation  $(CHAIN)/eval/report/index.html"
	@echo "curves      $(BIN)/mlflow ui --backend-store-uri sqlite:///$(CHAIN)/mlflow.db"

chain-supervised: $(CHAIN)/3_sft/summary.txt  ## the same up to SFT

$(CHAIN)/raw: | $(VENV)/.installed
	rm -rf $@.part
	$(PY) -m datamodules.world --out $@.part --count $(CHAIN_ROWS) --held-out 30 --side 128
	mv $@.part $@

$(CHAIN)/data/data.json: | $(CHAIN)/raw
	$(PY) -m firered_lit curate --recipe recipes/tiny/curate.yaml source=$(CHAIN)/raw out=$(CHAIN)/0_corpus
	$(PY) -m firered_lit prepare --recipe recipes/tiny/prepare.yaml source=$(CHAIN)/0_corpus/selected.jsonl \
		out=$(CHAIN)/data held_out=0

$(CHAIN)/1_pretrain/summary.txt: | $(CHAIN)/data/data.json
	$(call CHAIN_FIT,pretrain) data.root=$(CHAIN)/data trainer.max_steps=$(CHAIN_STEPS)

$(CHAIN)/2_continued/summary.txt: | $(CHAIN)/1_pretrain/summary.txt
	$(call CHAIN_FIT,continued_pretrain) data.root=$(CHAIN)/data \
		run.start_from=$(CHAIN)/1_pretrain trainer.max_steps=$(CHAIN_STEPS)

$(CHAIN)/3_sft/summary.txt: | $(CHAIN)/2_continued/summary.txt
	$(call CHAIN_FIT,sft) data.root=$(CHAIN)/data \
		run.start_from=$(CHAIN)/2_continued trainer.max_steps=$(CHAIN_STEPS)

$(CHAIN)/raw_pairs: | $(VENV)/.installed
	rm -rf $@.part
	$(PY) -m datamodules.synthetic --out $@.part --count 48 --pairs
	mv $@.part $@

$(CHAIN)/pairs/data.json: | $(CHAIN)/raw_pairs
	$(PY) -m firered_lit prepare --recipe recipes/tiny/prepare.yaml source=$(CHAIN)/raw_pairs/pairs.jsonl out=$(@D)

$(CHAIN)/4_dpo/summary.txt: | $(CHAIN)/3_sft/summary.txt $(CHAIN)/pairs/data.json
	$(call CHAIN_FIT,dpo) data.root=$(CHAIN)/pairs \
		run.start_from=$(CHAIN)/3_sft trainer.max_steps=$(CHAIN_DPO)

$(CHAIN)/5_nft/summary.txt: | $(CHAIN)/4_dpo/summary.txt
	$(call CHAIN_FIT,nft) data.root=$(CHAIN)/data \
		run.start_from=$(CHAIN)/4_dpo trainer.max_steps=$(CHAIN_NFT)

$(CHAIN)/model/model_index.json: | $(CHAIN)/5_nft/summary.txt
	$(PY) -m firered_lit export --run $(CHAIN)/5_nft --out $(@D)

$(CHAIN)/edited.png: | $(CHAIN)/model/model_index.json
	$(PY) -m firered_lit edit --model $(CHAIN)/model --image $(CHAIN)/raw/background/images/held_out-0-000005_source0.png \
		--prompt "Change the background to red" --out $@ --steps 8 --seed 0 --guidance 1

# the evaluation stands in the MLflow run of the stage that it is of
$(CHAIN)/eval.done: | $(CHAIN)/5_nft/summary.txt
	$(PY) -m firered_lit eval --recipe recipes/tiny/eval.yaml model=$(CHAIN)/5_nft out=$(CHAIN)/eval
	@touch $@

# What is there already is not made again: a learning that was stopped goes on where it was.
STAGES := $(LEARN)/sft $(LEARN)/dpo $(LEARN)/nft
REPORT := $(LEARN)/report/report.md
RESULTS := $(LEARN)/pretrained.json $(STAGES:=.json)

learn: $(VENV)/.installed  ## SFT -> DPO -> NFT in the learning world, and what each learned
	@$(MAKE) --no-print-directory -j2 $(REPORT)  # one command loads or measures while another trains
	@echo; cat $(REPORT); echo "report      $(REPORT)"; echo "edits       $(LEARN)/report/edits.png"
	@echo "curves      $(BIN)/mlflow ui --backend-store-uri sqlite:///$(LEARN)/runs/mlflow.db"

# the weights of the package were measured when they were put there
$(LEARN)/pretrained.json: | $(VENV)/.installed
	@mkdir -p $(LEARN)
	$(if $(PRETRAINED),$(EVALUATE) --model $(PRETRAINED) --out $@,cp docs/learning/pretrained.json $@)

$(STAGES:=.json): $(LEARN)/%.json: | $(LEARN)/%/model/model_index.json
	$(EVALUATE) --model $(LEARN)/$*/model --out $@

$(LEARN)/sft/model/model_index.json: | $(VENV)/.installed
	$(WORLD)/sft.yaml run.dir=$(LEARN)/runs/sft run.resume=last $(if $(PRETRAINED),run.start_from=$(PRETRAINED))
	$(PY) -m firered_lit export --run $(LEARN)/runs/sft --out $(LEARN)/sft/model --ema

$(LEARN)/dpo/data/data.json: | $(LEARN)/sft/model/model_index.json
	OMP_NUM_THREADS=1 $(PY) benchmarks/learning.py pairs --model $(LEARN)/sft/model --count 500 --seed 2000 --out $(LEARN)/dpo/pairs
	$(PREPARE) source=$(LEARN)/dpo/pairs out=$(LEARN)/dpo/data

$(LEARN)/dpo/model/model_index.json: | $(LEARN)/dpo/data/data.json
	$(WORLD)/dpo.yaml run.dir=$(LEARN)/runs/dpo run.resume=last run.start_from=$(LEARN)/sft/model \
		data.root=$(LEARN)/dpo/data
	$(PY) -m firered_lit export --run $(LEARN)/runs/dpo --out $(LEARN)/dpo/model --ema

$(LEARN)/nft/data/data.json: | $(VENV)/.installed
	$(PY) -m datamodules.world --out $(LEARN)/nft/world --families text --count 1200 --held-out 24 --seed 3
	$(PREPARE) source=$(LEARN)/nft/world out=$(LEARN)/nft/data

# a process for each core
$(LEARN)/nft/mined/mined.json: | $(LEARN)/dpo/model/model_index.json $(LEARN)/nft/data/data.json
	printf '0\n1\n' | xargs -P2 -I{} env OMP_NUM_THREADS=1 $(PY) -m firered_lit mine --recipe recipes/world/mine.yaml \
		task.start_from=$(LEARN)/dpo/model task.data.root=$(LEARN)/nft/data out=$(LEARN)/nft/mined num_shards=2 shard={}

$(LEARN)/nft/model/model_index.json: | $(LEARN)/nft/mined/mined.json
	$(WORLD)/nft.yaml run.dir=$(LEARN)/runs/nft run.resume=last run.start_from=$(LEARN)/dpo/model \
		data.root=$(LEARN)/nft/data data.mined=$(LEARN)/nft/mined
	$(PY) -m firered_lit export --run $(LEARN)/runs/nft --out $(LEARN)/nft/model --merge

$(REPORT): $(RESULTS)
	$(PY) benchmarks/report.py edits --names pretrained SFT DPO NFT --out $(LEARN)/report/edits.png \
		--models $(or $(PRETRAINED),world) $(STAGES:=/model)
	$(PY) benchmarks/report.py tables --names pretrained SFT DPO NFT --out $(LEARN)/report --results $(RESULTS) \
		$(if $(wildcard docs/learning/report.md),--against docs/learning)

learn-from-scratch: $(VENV)/.installed  ## pretraining first: hours on two CPU cores
	OMP_NUM_THREADS=1 $(WORLD)/pretrain.yaml run.dir=$(LEARN)/pretrain/run run.resume=last
	test -e $(LEARN)/pretrain/model || \
		$(PY) -m firered_lit export --run $(LEARN)/pretrain/run --out $(LEARN)/pretrain/model --ema
	@$(MAKE) --no-print-directory learn LEARN=$(LEARN)/scratch PRETRAINED=$(LEARN)/pretrain/model

test: $(VENV)/.installed  ## every quick test
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

slow: $(VENV)/.installed  ## the long proofs
	$(PY) -m pytest -m slow

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

notebooks: $(VENV)/.installed  ## run the notebooks and keep what they print and draw (minutes)
	$(PY) notebooks/refresh.py

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(DEMO) .notebooks build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
