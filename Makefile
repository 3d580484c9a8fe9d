# README's two commands. Each makes .venv when it is missing, installs the tested versions, and does its job.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-slow tables docs lint constraints clean

demo: .venv/.demo
	$(BIN)/dps-eval --config-name demo

test: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2

test-slow: .venv/.dev
	$(BIN)/pytest -n 2 -m slow

# Copies the stored results of the commands that README names into README.
tables: .venv/.dev
	$(BIN)/python benchmarks/readme.py

# The documentation site, into site/; a warning is an error. `make test` builds it, too (tests/test_docs.py).
docs: .venv/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: .venv/.dev
	$(BIN)/ruff check . && $(BIN)/mypy

constraints: .venv/.dev
	(echo "# The exact set that is tested (Python 3.11, Linux). Regenerate: make constraints"; \
	 $(BIN)/pip freeze --exclude-editable | sed 's/+cpu//') > constraints.txt.new && mv constraints.txt.new constraints.txt

# What `make demo` needs comes without a compiler; the tests also exercise robomimic, ray and a browser.
.venv/.demo: pyproject.toml constraints.txt | .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[eval,train]'
	touch $@

.venv/.dev: pyproject.toml constraints.txt tools/system-packages.sh | .venv
	sh tools/system-packages.sh
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@ .venv/.demo

.venv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv build site *.egg-info
