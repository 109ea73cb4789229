PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check clean

# ten minutes on two CPU cores: trains, generates, measures and writes runs/demo/report.html
demo: .venv/run.stamp
	$(BIN)/trisparse demo

test: .venv/test.stamp
	$(BIN)/pytest

# format, lint, types; rewrites files where the formatter disagrees
check: .venv/test.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/mypy

.venv/run.stamp: requirements/torch.txt requirements/run.txt pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) tools/make_venv.py .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/torch.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/run.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

.venv/test.stamp: .venv/run.stamp requirements/test.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/test.txt
	touch $@

clean:
	rm -rf .venv runs
