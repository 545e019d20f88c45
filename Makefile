# make demo | make test | make lint: each sets up a virtual environment the first time and only then.
PYTHON ?= python3
VENV ?= .venv
EPSILON ?= 16
DEMO_ARGS ?=
# such as --benchmark-json=bench.json, -k extraction, or "-m slow" for the coverage of the leakage floors (minutes)
BENCH_ARGS ?=
RUN = $(VENV)/bin/python
# two test processes with one thread each: more threads than cores wait for each other
TEST_PROCESSES ?= 2

.PHONY: demo test lint bench docs clean

demo: $(VENV)/.installed
	$(RUN) tools/demo.py --epsilon $(EPSILON) $(DEMO_ARGS)

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(TEST_PROCESSES) --dist loadfile --ignore=tests/benchmarks

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV)/.installed
	$(RUN) -m pytest tests/benchmarks -m "not slow" -s --benchmark-columns=min,median,rounds $(BENCH_ARGS)

docs: $(VENV)/.installed
	$(RUN) tools/write_docs.py

$(VENV)/.installed: setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable ".[test,dev]"
	touch $@

clean:
	rm -rf $(VENV) demo-output
