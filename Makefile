# Two commands for a fresh machine: `make demo` and `make test`. Both set up .venv with what they need. If the Python that
# PYTHON= names has PyTorch, that one serves here too.
PYTHON ?= python3
BIN := .venv/bin

# The core is built in a folder that stays, by tools that stay, so that a change compiles what it touches and no more.
INSTALL := $(BIN)/python -m pip install --no-build-isolation --config-settings build-dir=build/core \
	--config-settings cmake.define.CMAKE_COMPILE_WARNING_AS_ERROR=ON --editable

.PHONY: demo core test test-all lint types docs figures mutants wheels release-check clean

demo: .venv/demo
	@echo 'The demo takes about a minute on two cores; its pictures go to demo/.'
	$(BIN)/roialign demo --out demo

# What changed in csrc/, compiled and put where the editable install imports it. Soonest: make core SETS=avx2
core: .venv/ready
	@test -e build/core/CMakeCache.txt || $(INSTALL) . --quiet --no-deps
	@$(BIN)/python -m cmake -DROIALIGN_SETS="$(SETS)" build/core >/dev/null
	@$(BIN)/python -m cmake --build build/core --target _core
	@$(BIN)/python -m cmake --install build/core --prefix "$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('platlib'))")" >/dev/null

# On two cores; a test is given to whoever is free, and what shares a process of its own stays together.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup

# Triton's interpreter runs the GPU's kernels on the CPU if this is set before Triton is imported. It is slow, and many
# times slower where coverage watches it: few tests, unwatched. `make test` holds each kernel to the reference or to numbers
# by hand, `make test-all` to all that is asked of it.
INTERPRETED := TRITON_INTERPRET=1 $(PYTEST) --no-cov \
	tests/test_triton*.py tests/test_backends.py tests/test_roi_align.py tests/test_other_pools.py tests/test_errors.py

test: core # what a change needs
	$(PYTEST) -m "not slow"
	$(INTERPRETED) -m "not slow" -k "triton and not compile and (by_hand or agree or reference_s)"

test-all: core # the rest: whole detectors, browsers, graphs of the reference, every pair of what make test pairs once, long work
	$(PYTEST) -m slow
	$(INTERPRETED) -k "(test_triton and not compile) or (triton and (by_hand or agree or hostile))"

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror csrc/*.cpp csrc/*.h csrc/kernels/*.cpp csrc/kernels/*.h tests/core/*.cpp tests/core/*.h

types: .venv/ready
	$(BIN)/mypy

docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

figures: .venv/ready # of the documentation, after a change of what is drawn
	$(BIN)/python docs/figures.py

mutants: .venv/ready # who notices a changed operator or constant; some: make mutants MUTANTS="axis.py --sample 50"
	$(BIN)/python -c "import cosmic_ray" 2>/dev/null || $(BIN)/python -m pip install --quiet cosmic-ray
	$(BIN)/python tests/mutants.py $(MUTANTS)

wheels: # for Linux, x86-64 and aarch64, in dist/
	packaging/wheels

release-check: wheels .venv/ready # all of a release but the publishing
	packaging/release-check
	packaging/try-wheel

.venv/demo: pyproject.toml Makefile | $(BIN)/python
	$(INSTALL) '.[detection]'
	touch $@

.venv/ready: pyproject.toml Makefile | $(BIN)/python
	$(INSTALL) '.[all]'
	touch $@ .venv/demo

# A PyTorch that is there already is told to the new environment by a line in a file, in which pip looks as well.
$(BIN)/python:
	$(PYTHON) -m venv .venv
	@place=$$($(PYTHON) -c "import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])" 2>/dev/null) && \
		echo "PyTorch is there: $$place" && \
		echo "$$place" >"$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/pytorch.pth" || \
		echo 'Now come about 6 GB, nearly all of it PyTorch with CUDA; 5 to 20 minutes, most of them download.'
	$(BIN)/python -m pip install --quiet cmake nanobind ninja scikit-build-core

clean:
	rm -rf .venv demo site build dist
