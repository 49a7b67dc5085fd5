# make demo: pictures of clothes, CIFAR-10 and flowers by the shipped weights; then trains on digits and draws some.   make quick, make test, make test-faults: the tests, see CONTRIBUTING.md.
# Each target sets up .venv if it is missing, except test-cuda.
PYTHON ?= python3
BIN := .venv/bin
BY_FILE := --dist loadfile --no-loadscope-reorder# in the order of tests/conftest.py
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

NETWORKS ?= fashion_mnist cifar10# in the page: these leave it below 15 MB
RUNTIME := onnxruntime-web-1.22.0# an npm package; later ones are larger

.PHONY: demo figures tour page quick test test-faults test-cuda test-page lint
demo: .venv/ready
	for name in fashion_mnist cifar10 flower102; do \
		$(BIN)/python test_solver.py --model_path checkpoints/$$name.safetensors --test_mode random_gen --sample_num 50 \
			--sample_info UniPC_10_0p0 --guidance 1.5 || exit 1; done
	$(BIN)/python train_solver.py --data_name Digits
	$(BIN)/python test_solver.py --model_path train_results/digits/digits.pt --test_mode random_gen --sample_info DDIM_50_0p0

figures: .venv/ready
	$(BIN)/python benchmarks/figures.py $(if $(DATA),--data $(DATA))

tour: .venv/ready-dev
	$(BIN)/python benchmarks/tour.py

page: .venv/ready-dev .cache/$(RUNTIME).tgz
	rm -rf results/page
	$(BIN)/python -W ignore -m sharing.onnx_page results/page .cache/$(RUNTIME).tgz $(NETWORKS:%=checkpoints/%.safetensors)

quick: .venv/ready-dev
	$(PYTEST) -n auto $(BY_FILE) -m "not slow and not faults and not cuda and not page"

test: .venv/ready-dev
	$(PYTEST) -n auto $(BY_FILE)

test-faults: .venv/ready-dev
	$(PYTEST) -m faults

test-cuda: # without network, too: the machine's own Python if there is no .venv
	$(if $(wildcard .venv/ready-dev),$(BIN)/python,$(PYTHON)) -m pytest -m cuda tests/test_cuda.py

test-page: page # needs Chromium
	$(PYTEST) -m page tests/test_page.py

lint: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.cache/$(RUNTIME).tgz:
	mkdir -p .cache
	npm pack --silent --pack-destination .cache $(subst web-,web@,$(RUNTIME))

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/ready-dev: .venv/ready requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
