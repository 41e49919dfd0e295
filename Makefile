# make train   environment, data, a first training, pictures of the result
# make test    environment, the test suite but for what takes long
# make test-long   what make test leaves out, and more drawn inputs
# make lint    ruff and mypy
# Variables: PYTHON (interpreter), DATA, SOURCE, PREP_ARGS, ARGS (see scripts/train.sh)

export PYTHON DATA SOURCE PREP_ARGS ARGS
VENV := .venv/bin

.PHONY: train test test-long lint format clean

train: .venv/.installed
	@scripts/train.sh

test: .venv/.installed
	$(VENV)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-long: .venv/.installed
	HYPOTHESIS_PROFILE=thorough $(VENV)/python -m pytest -n 2 --dist loadfile -m "slow or fuzz"

lint: .venv/.installed
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy

format: .venv/.installed
	$(VENV)/ruff check --fix .
	$(VENV)/ruff format .

clean:
	rm -rf .venv .virtualenv build *.egg-info

.venv/.installed: pyproject.toml scripts/setup.sh
	@scripts/setup.sh

# What FFCV is built with may be installed long after the rest: setup.sh then runs once more.
ifeq ($(shell pkg-config --exists opencv4 libturbojpeg 2>/dev/null && echo yes)$(wildcard .venv/.ffcv),yes)
.PHONY: .venv/.installed
endif
