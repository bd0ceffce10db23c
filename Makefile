.DEFAULT_GOAL := help
.SUFFIXES:
PYTHON ?= python3
RUN := .venv/bin/python
RESNET ?= resnet50
DENSENET ?= densenet121
DATA ?= fracatlas
SEEDS ?= 3
RUNS ?= logs/baseline_resnet logs/baseline_densenet
ARGS ?=
# What is searched on each data set, and the name of the study, as conf/hydra/sweeper/study.yaml would give it.
SEARCHED_fracatlas := model.variant=$(DENSENET)
SEARCHED_phantom := experiment=demo_densenet
STUDY_fracatlas := $(DENSENET)_fracatlas
STUDY_phantom := densenet_tiny_phantom
STUDY ?= $(STUDY_$(DATA))

.PHONY: help setup lock demo data baseline search full-results report tensorboard test faults dependencies lint bench clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.ready  ## Create .venv with the pinned dependencies; nothing to do when they are there

.venv/.ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than Python 3.11; name another with PYTHON=..."; exit 1; }
	@test -x $(RUN) || $(PYTHON) -m venv .venv
	@.venv/bin/uv --version >/dev/null 2>&1 || $(RUN) -m pip install --quiet --disable-pip-version-check uv==0.13.9
	.venv/bin/uv pip sync --quiet --python $(RUN) requirements.txt
	.venv/bin/uv pip install --quiet --python $(RUN) --no-deps --editable .
	@touch $@

lock:  ## Renew the pins in requirements.txt from pyproject.toml
	.venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras --generate-hashes --custom-compile-command "make lock" --output-file requirements.txt pyproject.toml

demo: setup  ## The whole pipeline on generated phantoms: no download, no GPU, about three minutes
	$(RUN) train.py experiment=demo_resnet $(ARGS)
	$(RUN) train.py experiment=demo_densenet $(ARGS)
	@$(RUN) -m fractatlas.report.table logs/demo_resnet logs/demo_densenet
	@echo "Curves, images, hyperparameters: .venv/bin/tensorboard --logdir logs"

data: setup  ## Fetch, verify, unpack and audit FracAtlas (FRACATLAS_ROOT=data/FracAtlas ARGS="--archive FILE")
	$(RUN) -m fractatlas.data.download $(ARGS)
	$(RUN) -m fractatlas.data.audit

baseline: setup  ## Step 1 of the study on FracAtlas (RESNET=resnet50 DENSENET=densenet121 FRACATLAS_ROOT= FRACATLAS_WEIGHTS=)
	$(RUN) train.py experiment=baseline_resnet model.variant=$(RESNET) $(ARGS)
	$(RUN) train.py experiment=baseline_densenet model.variant=$(DENSENET) $(ARGS)
	@$(RUN) -m fractatlas.report.table logs/baseline_resnet logs/baseline_densenet

search: setup  ## Step 2: 15 trials, the winner again over SEEDS=3 seeds, the test part once (DATA=phantom STUDY=name)
	$(RUN) train.py -m hparams_search=optuna $(SEARCHED_$(DATA)) hydra.sweeper.study_name=$(STUDY) $(ARGS)
	$(RUN) -m fractatlas.search.refit logs/search/$(STUDY) --seeds $(SEEDS)

full-results: setup  ## Every table of experiments/ at full size, three seeds each: hours on a GPU; again: goes on
	$(RUN) -m fractatlas.search.plan experiments/01_baseline/full.yaml
	$(MAKE) search DENSENET=densenet169
	mkdir -p experiments/02_hparam_search/full
	cp $(addprefix logs/search/densenet169_fracatlas/,trials.csv trials.md refit/test.csv refit/test.md) experiments/02_hparam_search/full
	$(RUN) -m fractatlas.training.probe --out experiments/03_stronger/probe \
	    "model.variant=densenet169 preprocess=study" \
	    "model.variant=densenet169 preprocess=letterbox preprocess.size=320" \
	    "model.variant=densenet169 preprocess=letterbox preprocess.size=448"
	$(RUN) -m fractatlas.search.plan experiments/03_stronger/full.yaml
	.venv/bin/jupyter-execute --inplace notebooks/02_results.ipynb

report: setup  ## Runs against each other on one page (RUNS="logs/baseline_resnet logs/baseline_densenet")
	$(RUN) -m fractatlas.report.compare $(RUNS) $(ARGS)

tensorboard: setup  ## Open the logs
	.venv/bin/tensorboard --logdir logs

# One thread each: with more, the files that run side by side would wait for one another.
test: setup  ## The test suite, a file per core at a time
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses auto --dist loadfile $(ARGS)

faults:  ## Kills, hostile files and a fuzz campaign at full length; writes tests/README.md
	FRACTATLAS_KILLS=50 FRACTATLAS_FUZZ=100000 $(MAKE) test ARGS="-m fault --timeout 3600 --fault-table tests/README.md $(ARGS)"

dependencies: setup  ## Known vulnerabilities of the pinned packages (asks PyPI), and their licences
	.venv/bin/uv tool run pip-audit --requirement requirements.txt --disable-pip
	.venv/bin/uv tool run pip-licenses --python $(RUN) --order license --fail-on "GNU General Public License v3 (GPLv3);GPL-3.0-only;GPL-3.0-or-later;GPL-2.0-only;AGPL-3.0-only;AGPL-3.0-or-later"

lint: setup  ## Style and common mistakes
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

bench: setup  ## Speed, as ratios within one run
	$(RUN) tests/bench.py $(ARGS)
	$(RUN) tests/bench_predict.py
	$(RUN) tests/bench_search.py

clean:  ## Delete caches; logs/, data/ and .venv stay
	rm -rf .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
