# make demo   everything from nothing: environment, data, 9 minutes of training, evaluation
# make test   environment and tests          make lint   ruff and mypy
# make slow   the tests of minutes           make bench  the side-by-side benchmarks, quick
# make slurm  the tests on a real SLURM of several nodes (root, Debian)
# make image  the container image, built by buildah and tried out (root)
SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo yes)
EXTRAS := dev$(if $(GPU),,$(shell echo ,cpu))
WORLD ?= $(if $(GPU),gpu1,cpu2)
RUN ?= demo
export OMP_NUM_THREADS ?= 1

.PHONY: demo test slow slurm image lint format bench clean
demo: $(READY)
	$(BIN)/genus data fetch fashion-mnist
	$(BIN)/accelerate launch --config_file launch/accelerate/$(WORLD).yaml \
	    recipes/diffusion.py run.name=$(RUN) train.minutes=10
	$(BIN)/genus evaluate runs/$(RUN)
	$(BIN)/genus sample runs/$(RUN) --n 100 --guidance 2 --out runs/$(RUN)/samples-guided.png
	$(BIN)/genus curves runs/$(RUN)
	@$(BIN)/genus show runs/$(RUN)

test: $(READY)
	@# files whole and in their order: fixtures of a module train once, and the longest begins early
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder \
	    -m "not slow and not slurm and not browser and not gpu and not docker"

slow: $(READY)
	$(BIN)/pytest -m "slow"

image: $(READY)
	$(BIN)/pytest -s -m "docker" tests/docker

slurm: $(READY)
	tests/slurm/setup.sh
	$(BIN)/pytest tests/slurm -m "slurm"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	for script in benchmarks/*.py; do \
	    grep -q -- --quick $$script && { $(BIN)/python $$script --quick || exit 1; }; done

$(READY): pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@# the tested torch is a CPU build on some machines: with a GPU pip's own choice is right
	$(if $(GPU),grep -v '^torch==',cat) constraints.txt > $(VENV)/constraints.txt
	$(BIN)/python -m pip install --quiet --constraint $(VENV)/constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
