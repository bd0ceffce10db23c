.DEFAULT_GOAL := help
.SUFFIXES:
PYTHON ?= python3
RUN := .venv/bin/python
FRACTATLAS := .venv/bin/fractatlas
RESNET ?= resnet50
DENSENET ?= densenet121
DATA ?= fracatlas
RUNS ?= logs/baseline_resnet logs/baseline_densenet
FAULT_TABLE ?= tests/README.md
ENGINE ?= docker
IMAGE ?= fractatlas
TORCH ?= cpu
READING_TABLE ?= tests/reading.md
ARGS ?=
JOBS ?= 1
# The options of the search on each data set, and the study names that conf/hydra/sweeper/resumable.yaml gives them.
SEARCHED_fracatlas := model.variant=$(DENSENET)
SEARCHED_phantom := experiment=demo_densenet
STUDY_fracatlas := $(DENSENET)_fracatlas
STUDY_phantom := densenet_tiny_phantom
STUDY ?= $(STUDY_$(DATA))

.PHONY: help setup lock demo data baseline search full-results report tensorboard test integration test-all faults dependencies lint docs bench image clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.ready  ## Create .venv with the pinned dependencies, unless it is up to date

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
	$(FRACTATLAS) train experiment=demo_resnet $(ARGS)
	$(FRACTATLAS) train experiment=demo_densenet $(ARGS)
	@$(FRACTATLAS) table logs/demo_resnet logs/demo_densenet
	@echo "Curves, images, hyperparameters: .venv/bin/tensorboard --logdir logs"

data: setup  ## Download, verify, unpack and audit FracAtlas (FRACATLAS_ROOT=data/FracAtlas ARGS="--archive FILE")
	$(FRACTATLAS) data download $(ARGS)
	$(FRACTATLAS) data audit

baseline: setup  ## Step 1 of the reference report (RESNET=resnet50 DENSENET=densenet121 FRACATLAS_ROOT= FRACATLAS_WEIGHTS=)
	$(FRACTATLAS) train experiment=baseline_resnet model.variant=$(RESNET) $(ARGS)
	$(FRACTATLAS) train experiment=baseline_densenet model.variant=$(DENSENET) $(ARGS)
	@$(FRACTATLAS) table logs/baseline_resnet logs/baseline_densenet

search: setup  ## Step 2: 15 trials, then the best configuration with three seeds (DATA=phantom STUDY=name)
	$(FRACTATLAS) search $(SEARCHED_$(DATA)) hydra.sweeper.study_name=$(STUDY) $(ARGS)
	$(FRACTATLAS) plan logs/search/$(STUDY)/refit.yaml

full-results: setup  ## Every table of experiments/ at full size: hours on a GPU (JOBS=6: runs at the same time); the same command resumes
	for plan in 03_stronger/folds 03_stronger/changes 03_stronger/input_size 01_baseline/random 01_baseline/folds \
	    02_hparam_search/reference_points 02_hparam_search/winner_224px 04_where/choices 04_where/resnet50; do \
	    $(FRACTATLAS) plan experiments/$$plan.yaml --jobs $(JOBS) || exit; done
	$(MAKE) search DENSENET=densenet169
	cp $(addprefix logs/search/densenet169_fracatlas/,trials.csv trials.md) experiments/02_hparam_search/fracatlas_224px
	$(FRACTATLAS) probe --out experiments/03_stronger/probe \
	    "model.variant=densenet169 preprocess=imagenet" \
	    "model.variant=densenet169 preprocess=letterbox preprocess.size=320" \
	    "model.variant=densenet169 preprocess=letterbox preprocess.size=448"
	$(FRACTATLAS) plan experiments/03_stronger/full.yaml --jobs $(JOBS)
	.venv/bin/jupyter-execute --inplace notebooks/02_results.ipynb

report: setup  ## Compare runs on one page (RUNS="logs/baseline_resnet logs/baseline_densenet")
	$(FRACTATLAS) compare $(RUNS) $(ARGS)

tensorboard: setup  ## Open the logs
	.venv/bin/tensorboard --logdir logs

# One thread per process, because as many test files as cores run at the same time.
test integration test-all: export OMP_NUM_THREADS := 1
PYTEST := $(RUN) -m pytest --numprocesses auto --dist loadfile

test: setup  ## The default tests, one file per core at a time
	$(PYTEST) $(ARGS)

integration: setup  ## The tests that train longer, kill processes, or start servers and browsers
	$(PYTEST) -m integration $(ARGS)

test-all: setup  ## All tests
	$(PYTEST) -m "integration or not integration" $(ARGS)

faults:  ## Fault tests at full length: kills, hostile files, fuzzing; writes two tables (FAULT_TABLE=FILE READING_TABLE=FILE)
	$(RUN) -m tests.robustness.reading --table $(READING_TABLE)
	FRACTATLAS_KILLS=50 FRACTATLAS_FUZZ=100000 FRACTATLAS_EXAMPLES=3 $(MAKE) test ARGS="-m fault --timeout 3600 --fault-table $(FAULT_TABLE) $(ARGS)"

dependencies: setup  ## Known vulnerabilities of the pinned packages (queries PyPI), and their licences
	.venv/bin/uv tool run pip-audit --requirement requirements.txt --disable-pip
	.venv/bin/uv tool run pip-licenses --python $(RUN) --order license --fail-on "GNU General Public License v3 (GPLv3);GPL-3.0-only;GPL-3.0-or-later;GPL-2.0-only;AGPL-3.0-only;AGPL-3.0-or-later"

lint: setup  ## Style, import rules, types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	.venv/bin/lint-imports
	$(RUN) -m mypy

docs: setup  ## Build the documentation in docs/_build/html
	.venv/bin/sphinx-build -W --keep-going docs docs/_build/html

bench: setup  ## Speed, as ratios within one run
	$(RUN) benchmarks/training.py $(ARGS)
	$(RUN) benchmarks/cost.py
	$(RUN) benchmarks/reading.py
	$(RUN) benchmarks/table.py
	$(RUN) benchmarks/predict.py
	$(RUN) benchmarks/search.py
	$(RUN) benchmarks/serving.py

image:  ## Build the container image (TORCH=cpu, or cu130 for an NVIDIA GPU; ENGINE=docker IMAGE=fractatlas)
	$(ENGINE) build --build-arg TORCH=$(TORCH) --tag $(IMAGE) .

clean:  ## Delete caches and builds; logs/, data/ and .venv stay
	rm -rf .pytest_cache .ruff_cache .mypy_cache .import_linter_cache *.egg-info build dist docs/_build
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
