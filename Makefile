# make reproduce   regenerate every figure and table that is ready, at the embedded scale, into figures/embedded/
# make test        run all tests
# Each makes its own environment in .venv/ first, if it is not there.

SHELL := /bin/bash
PROFILE ?= embedded
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(firstword $(shell for p in python3 python3.12 python3.11; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' && echo $$p; done))

.PHONY: reproduce test lab readme

reproduce: $(VENV)/installed
	$(BIN)/mixrepro reproduce --profile $(PROFILE)

test: $(VENV)/installed
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lab: $(VENV)/installed
	$(BIN)/jupyter lab nbs/index.ipynb

readme: $(VENV)/installed
	$(BIN)/jupyter nbconvert --config nbs/readme_config.py nbs/index.ipynb --output-dir .

$(VENV)/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or 3.12 was found: install one, or name it with make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m ipykernel install --sys-prefix --name python3 > /dev/null
	touch $@
