# make report   environment, then the whole series: reports/<corpus>/index.html   (ARGS="--data DIR --only 00,01 …")
# make test     environment, style, unit tests, and the notebooks against their saved outputs
# make reference  runs the series on the sample and accepts what it gives: notebooks with outputs, results, PDF
# make setup    the environment alone, in .venv   (PYTHON=python3.12 picks the interpreter)
# make constraints   resolves the pinned versions anew
# make clean    removes the environment; corpora and reports stay

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed

# Set iteration order is fixed, so that outputs are too. Threads are left alone: results that depend on their number
# are compared with a tolerance, and one thread would double the time. A backend set outside would silence the figures.
export PYTHONHASHSEED := 0
export PYDEVD_DISABLE_FILE_VALIDATION := 1
unexport MPLBACKEND

.PHONY: setup report test reference constraints clean
setup: $(STAMP)

# The stamp comes last: an interrupted installation is taken up again.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[lab,test,kaggle,dask]'
	touch $@

report: setup
	$(BIN)/labhelpers report $(ARGS)

# The notebooks' saved outputs are those of a run that finds the sample built.
SAMPLE := data/sample/sample.json
$(SAMPLE): | $(STAMP)
	$(BIN)/labhelpers data sample

test: setup $(SAMPLE)
	$(BIN)/ruff check .
	$(BIN)/python -m pytest

reference: setup $(SAMPLE)
	$(BIN)/labhelpers reference

# Needs uv on the path; the markers that say "Linux" on every line are dropped.
constraints:
	uv pip compile pyproject.toml --extra lab --extra test --extra kaggle --extra dask --universal --python-version 3.10 \
		--upgrade --no-annotate --no-header --strip-extras --no-emit-index-url --quiet \
		| sed -e "s/ and sys_platform == 'linux'//" -e "s/ ; sys_platform == 'linux'//" > constraints.tmp
	mv constraints.tmp constraints.txt

clean:
	rm -rf .venv build *.egg-info .ruff_cache
	find labhelpers tests notebooks -name __pycache__ -prune -exec rm -rf {} +
