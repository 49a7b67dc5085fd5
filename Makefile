# make demo: from nothing to pictures of digits.  make test: all quick tests.  make test-faults: kills and signals, over
# and over.  Each sets up .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo figures test test-faults lint
demo: .venv/ready
	$(BIN)/python train_solver.py --data_name Digits
	$(BIN)/python test_solver.py --model_path train_results/digits/digits.pt --test_mode random_gen --sample_info DDIM_50_0p0

figures: .venv/ready
	$(BIN)/python benchmarks/figures.py $(if $(DATA),--data $(DATA))

test: .venv/ready-dev
	$(BIN)/python -m pytest

test-faults: .venv/ready-dev
	$(BIN)/python -m pytest -m faults

lint: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/ready-dev: .venv/ready requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
