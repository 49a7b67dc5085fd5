# make demo: from nothing to pictures of digits.   make quick, make test, make test-faults: the tests, see CONTRIBUTING.md.
# Each target sets up .venv if it is missing, except test-cuda.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: demo figures quick test test-faults test-cuda lint
demo: .venv/ready
	$(BIN)/python train_solver.py --data_name Digits
	$(BIN)/python test_solver.py --model_path train_results/digits/digits.pt --test_mode random_gen --sample_info DDIM_50_0p0

figures: .venv/ready
	$(BIN)/python benchmarks/figures.py $(if $(DATA),--data $(DATA))

quick: .venv/ready-dev
	$(PYTEST) -n auto --dist loadfile -m "not slow and not faults and not cuda"

test: .venv/ready-dev
	$(PYTEST) -n auto --dist loadfile

test-faults: .venv/ready-dev
	$(PYTEST) -m faults

test-cuda: # without network, too: the machine's own Python if there is no .venv
	$(if $(wildcard .venv/ready-dev),$(BIN)/python,$(PYTHON)) -m pytest -m cuda tests/test_cuda.py

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
