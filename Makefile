# make train       environment, data, a first training, pictures of the result
# make test        environment, the test suite but for what takes long
# make test-long   what make test leaves out, and more drawn inputs
# make torture     kills, damaged input and faults, an hour; writes docs/reliability.md
# make loaders     the loaders ffcv and dali (and the tests' tools)
# make lint        ruff and mypy
# Variables: PYTHON (interpreter), TORCH (cpu or cuda), DATA, SOURCE, PREP_ARGS, ARGS (see scripts/)

export PYTHON TORCH TORCH_INDEX DATA SOURCE PREP_ARGS ARGS
VENV := .venv/bin

.PHONY: train test test-long torture loaders lint format clean

train: .venv/.train
	@scripts/train.sh

test: .venv/.test
	$(VENV)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-long: .venv/.test
	HYPOTHESIS_PROFILE=thorough $(VENV)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "slow or fuzz"

torture: .venv/.test
	$(VENV)/python tests/torture.py

loaders: .venv/.test

lint: .venv/.test
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy

format: .venv/.test
	$(VENV)/ruff check --fix .
	$(VENV)/ruff format .

clean:
	rm -rf .venv .virtualenv build *.egg-info

.venv/.train .venv/.test: pyproject.toml scripts/setup.sh
	@scripts/setup.sh $(@:.venv/.%=%)

# setup.sh itself looks whether that is another torch than the one that is there.
ifdef TORCH
.PHONY: .venv/.train .venv/.test
endif

# What FFCV is built with may be installed long after the rest: setup.sh then runs once more.
ifeq ($(shell pkg-config --exists opencv4 libturbojpeg 2>/dev/null && echo yes)$(wildcard .venv/.ffcv),yes)
.PHONY: .venv/.test
endif
