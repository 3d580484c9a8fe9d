# README's two commands. Each makes .venv when it is missing, installs the tested versions, and does its job.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-slow tables docs lint constraints clean

demo: .venv/.installed
	$(BIN)/dps-eval --config-name demo

test: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2

test-slow: .venv/.installed
	$(BIN)/pytest -n 2 -m slow

# Copies the stored results of the commands that README names into README.
tables: .venv/.installed
	$(BIN)/python benchmarks/readme.py

# The documentation site, into site/; a warning is an error. `make test` builds it, too (tests/test_docs.py).
docs: .venv/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: .venv/.installed
	$(BIN)/ruff check . && $(BIN)/mypy

constraints: .venv/.installed
	(echo "# The exact set that is tested (Python 3.11, Linux). Regenerate: make constraints"; \
	 $(BIN)/pip freeze --exclude-editable | sed 's/+cpu//') > constraints.txt.new && mv constraints.txt.new constraints.txt

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build site *.egg-info
