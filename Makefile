# make report   environment, then the whole series: reports/<corpus>/index.html   (ARGS="--data DIR --only 00,01 …")
# make test     environment, style, unit tests, and the notebooks against their saved outputs
# make sample   the sample corpus: built where there is none, and anew when what makes it changed
# make test-kaggle  the unit tests with Kaggle's versions, in .venv-kaggle   (TESTS=tests/test_models.py picks some;
#               PYTHON=python3.12 takes its torch too, 3 GB; IMAGE=-next PYTHON=python3.13 its next image)
# make results  the notebooks with whole trainings, and all results held to the reference (an hour)
# make reference  runs the series on the sample and accepts what it gives: notebooks with outputs, results, PDF
# make reference-real  runs the series on real music (REAL=DIR, a corpus folder): its report, results and submission
# make setup    the environment alone, in .venv   (PYTHON=python3.12 picks the interpreter)
# make mutations   makes small wrong changes one at a time, in a copy, and shows that each fails the tests (half an
#               hour; WORDS=training picks those whose file or name has the word)
# make constraints   resolves the pinned versions anew
# make clean    removes the environments; corpora and reports stay

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed

# Set iteration order is fixed, so that outputs are too. A backend set outside would silence the figures.
export PYTHONHASHSEED := 0
export PYTHONUNBUFFERED := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1
unexport MPLBACKEND
# The number of threads changes the last bits of a training, and those its end: the reference is of one thread. What the
# notebooks' tests compare is the same for any number, and they run beside the unit tests. A report takes all.
ONE_THREAD := OMP_NUM_THREADS=1

.PHONY: setup report sample test unit-tests notebook-tests results test-kaggle reference reference-real mutations constraints clean
setup: $(STAMP)

# The stamp comes last: an interrupted installation is taken up again. librosa's functions are compiled at once, since
# processes that compile them side by side can crash each other.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[lab,test,kaggle,dask]'
	$(BIN)/python -c "from labhelpers.corpora.write import fill_numba_cache; fill_numba_cache()"
	touch $@

report: setup
	$(BIN)/labhelpers report $(ARGS)

# The notebooks' saved outputs are those of a run that finds the sample as its maker makes it today.
sample: setup
	$(BIN)/python -m tools.sample

test: setup sample
	$(BIN)/ruff check .
	$(BIN)/ruff format --check labhelpers tests tools
	$(MAKE) --no-print-directory -j2 unit-tests notebook-tests

unit-tests:
	$(BIN)/python -m pytest tests --ignore tests/test_reference.py

# What is compared of a training are its first epochs; only they are done, the rest would take an hour.
notebook-tests:
	$(ONE_THREAD) PYTHONPATH=$(CURDIR)/tools/quick_trainings $(BIN)/python -m pytest notebooks tests/test_reference.py

results: setup sample
	$(ONE_THREAD) $(BIN)/python -m pytest notebooks tests/test_reference.py

TESTS ?= tests
IMAGE ?=
KAGGLE := .venv-kaggle$(IMAGE)
test-kaggle: $(KAGGLE)/.installed
	$(KAGGLE)/bin/python -m pytest $(TESTS)

$(KAGGLE)/.installed: pyproject.toml constraints-kaggle$(IMAGE).txt
	$(PYTHON) -m venv $(KAGGLE)
	$(KAGGLE)/bin/python -m pip install --disable-pip-version-check -c constraints-kaggle$(IMAGE).txt -e '.[test,kaggle]'
	touch $@

reference: setup sample
	$(ONE_THREAD) $(BIN)/python -m tools.reference

REAL ?= ../shared/data/emotify
reference-real: setup
	$(BIN)/python -m tools.reference real $(REAL)

WORDS ?=
mutations: setup sample
	$(BIN)/python -m tools.mutations $(WORDS)

# Needs uv on the path; the markers that say "Linux" on every line are dropped.
constraints:
	uv pip compile pyproject.toml --extra lab --extra test --extra kaggle --extra dask --universal --python-version 3.10 \
		--upgrade --no-annotate --no-header --strip-extras --no-emit-index-url --quiet \
		| sed -e "s/ and sys_platform == 'linux'//" -e "s/ ; sys_platform == 'linux'//" > constraints.tmp
	mv constraints.tmp constraints.txt

clean:
	rm -rf .venv .venv-kaggle* build *.egg-info .ruff_cache
	find labhelpers tests notebooks -name __pycache__ -prune -exec rm -rf {} +
