# Two commands for a fresh machine: `make demo` and `make test`. Both set up .venv with all that they need.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint types docs picture mutants clean

demo: .venv/ready
	$(BIN)/roialign demo --out demo

test: .venv/ready
	$(BIN)/python -m pytest -n 2

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror csrc/*.cpp csrc/*.h tests/core/*.cpp

types: .venv/ready
	$(BIN)/mypy

docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

picture: .venv/ready # the README's, after a change of the figures
	$(BIN)/python docs/figures.py

mutants: .venv/ready # who notices a changed operator or constant; some: make mutants MUTANTS="axis.py --sample 50"
	$(BIN)/python -c "import cosmic_ray" 2>/dev/null || $(BIN)/python -m pip install --quiet cosmic-ray
	$(BIN)/python tests/mutants.py $(MUTANTS)

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[all]'
	touch $@

clean:
	rm -rf .venv demo site build dist
