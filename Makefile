# make report   sets up .venv, runs the series, writes reports/<corpus>/index.html and report.pdf
#               (ARGS="--data DIR --only 00,01 -p SEEDS 2"; `.venv/bin/python -m scripts.report --help`)
# make test     sets up .venv, then style, unit tests, and all notebooks against their saved outputs
# make open     opens the newest report in the browser
#
# make setup    .venv alone (PYTHON=python3.12 takes that interpreter)
# make lab      JupyterLab with the notebooks
# make sample   the sample corpus, built anew if what makes it has changed
# make lint · unit-tests · notebook-tests · 05_lstm   parts of make test (a notebook: what it needs first)
# make test-kaggle       unit tests with the versions of Kaggle's image (IMAGE=-next: its next image)
# make reference         runs the series on the sample and accepts its outputs and results
# make reference-real    runs it on real music and accepts its results (REAL=DIR, a corpus)
# make wrong-changes     makes small wrong changes, one at a time, and shows that tests fail
# make packages          environment.yml from pyproject.toml
# make constraints       constraints.txt from pyproject.toml, with today's versions (needs uv)
# make clean             removes the environments; corpora and reports stay

PYTHON ?= python3
ARGS ?=
JOBS ?= $(shell nproc)
BIN := .venv/bin
SAMPLE := data/sample/fma_genre_spectrograms/train_labels.txt
NOTEBOOKS := $(basename $(notdir $(wildcard notebooks/[0-9]*.ipynb)))

# Results are those of one thread, whatever the machine; notebooks run side by side instead.
export OMP_NUM_THREADS ?= 1
export PYTHONUNBUFFERED := 1

.PHONY: report test open setup lab sample lint unit-tests notebook-tests $(NOTEBOOKS) test-kaggle \
	reference reference-real wrong-changes packages constraints clean

report: setup
	@$(BIN)/python -m scripts.report $(ARGS)

test: setup sample lint
	@$(MAKE) --no-print-directory --output-sync=target -j$(JOBS) notebook-tests unit-tests
	@$(BIN)/python -m pytest -q tests/test_results.py

NEWEST = $(firstword $(shell ls -t reports/*/index.html 2> /dev/null))
open:
	@$(PYTHON) -m webbrowser "file://$(abspath $(or $(NEWEST),$(error no report yet: make report)))"

lab: setup
	$(BIN)/jupyter lab notebooks

# --- environments -----------------------------------------------------------------------------------

setup: .venv/.installed

# install FOLDER, CONSTRAINTS, EXTRAS: quietly, with all that pip says in a file.
define install
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'Python 3.10 or later is needed')"
	@echo "Installing about 120 packages (2 to 5 GB) into $(1), some minutes. Log: $(1)/install.log"
	@$(PYTHON) -m venv $(1)
	@$(1)/bin/python -m pip install --disable-pip-version-check --no-input -c $(2) -e '.[$(3)]' \
		> $(1)/install.log 2>&1 || { tail -n 15 $(1)/install.log; exit 1; }
	@$(1)/bin/python -c $(COMPILE)
	@touch $(1)/.installed
endef
# Two processes that compile librosa's functions at once can crash each other: they are compiled here.
COMPILE := "import numpy, labhelpers.audio; labhelpers.audio.extract(numpy.random.randn(66150) / 9)"

.venv/.installed: pyproject.toml constraints.txt
	$(call install,.venv,constraints.txt,lab$(comma)test$(comma)kaggle)

comma := ,
IMAGE ?=
TESTS ?= tests
.venv-kaggle$(IMAGE)/.installed: pyproject.toml constraints-kaggle$(IMAGE).txt
	$(call install,.venv-kaggle$(IMAGE),constraints-kaggle$(IMAGE).txt,test)

test-kaggle: .venv-kaggle$(IMAGE)/.installed
	@.venv-kaggle$(IMAGE)/bin/python -m pytest -q $(TESTS) --ignore tests/test_results.py

packages:
	@$(PYTHON) -m tools.packages

# The markers that name Linux on every line are dropped.
constraints:
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.10 --upgrade \
		--no-annotate --no-header --strip-extras --no-emit-index-url --quiet \
		| sed -e "s/ and sys_platform == 'linux'//" -e "s/ ; sys_platform == 'linux'//" > constraints.tmp
	mv constraints.tmp constraints.txt

# --- tests ------------------------------------------------------------------------------------------

lint:
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check labhelpers scripts tests tools conftest.py

unit-tests:
	@$(BIN)/python -m pytest -q tests --ignore tests/test_results.py

sample: $(SAMPLE)

$(SAMPLE): labhelpers/sample.py labhelpers/audio.py | setup
	@rm -rf data/sample
	@$(BIN)/python -m labhelpers.sample data/sample

# The longest way first: the others run beside it.
notebook-tests: 05_lstm 08_affect_regression 09b_multitask_learning 07_cnn $(NOTEBOOKS)

$(NOTEBOOKS): | setup sample
	@$(BIN)/python -m pytest -q --nbval notebooks/$@.ipynb

# A notebook runs when those whose records it loads have run (a test compares this with their code).
06_evaluation: 05_lstm
07_cnn: 05_lstm 06_evaluation
08_affect_regression: 05_lstm
09a_transfer_learning: 05_lstm 07_cnn 08_affect_regression
09b_multitask_learning: 08_affect_regression
10_kaggle_submission: 08_affect_regression 09b_multitask_learning

# --- for maintainers --------------------------------------------------------------------------------

reference: setup sample
	@$(BIN)/python -m scripts.report --data sample
	@$(BIN)/python -m scripts.reference accept reports/sample
	@$(BIN)/python -m tools.results

# --models: the networks that scripts.predict takes are committed, too.
reference-real: setup
	@$(if $(REAL),,$(error name a corpus of recorded music: make reference-real REAL=DIR))
	@$(BIN)/python -m scripts.report --data $(REAL) --out reports/real
	@$(BIN)/python -m scripts.reference accept reports/real --models
	@$(BIN)/python -m tools.results

wrong-changes: setup sample
	@$(BIN)/python -m tools.wrong_changes

clean:
	rm -rf .venv .venv-kaggle* build *.egg-info .ruff_cache
	find labhelpers scripts tests tools -name __pycache__ -prune -exec rm -rf {} +
