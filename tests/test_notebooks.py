"""The committed notebooks, as they lie there: executed, clean, and of one form.

That their outputs are what the code gives today is nbval's to say (`pytest notebooks`).
"""

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest

from labhelpers.series.notebooks import faults

ROOT = Path(__file__).resolve().parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
IGNORED = "nbval-ignore-output"


def tags(cell):
    return cell.metadata.get("tags", [])


def tagged(book, tag):
    return [cell for cell in book.cells if tag in tags(cell)]


def code(book):
    return [cell for cell in book.cells if cell.cell_type == "code" and cell.source.strip()]


@pytest.fixture(params=PATHS, ids=[path.stem for path in PATHS])
def path(request):
    return request.param


@pytest.fixture
def book(path):
    return nbformat.read(path, 4)


def test_the_series_is_whole():
    numbers = [path.name.split("_")[0] for path in PATHS]
    assert numbers == ["00", "01", "02", "03", "04", "05", "06", "07", "08", "09a", "09b", "10"]


def test_it_was_run_from_top_to_bottom_and_shows_nothing_odd(book):
    assert faults(book) == []
    assert [cell.execution_count for cell in code(book)] == list(range(1, len(code(book)) + 1))


def test_it_is_small_and_keeps_nothing_of_the_run(path, book):
    assert path.stat().st_size < 1_000_000 and path.read_text().endswith("}\n")
    nbformat.validate(book)
    assert (book.nbformat, book.nbformat_minor) == (4, 5)
    assert set(book.metadata) <= {"kernelspec", "language_info"}
    assert book.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in book.cells]
    assert len(set(ids)) == len(ids)
    known = {"tags", "jupyter", "_kg_hide-input"}
    odd = {key for cell in book.cells for key in cell.metadata} - known
    assert not odd


def test_its_cells_stand_in_the_series_order(book):
    places = {}
    for tag in ("setup", "parameters", "summary", "record"):
        (cell,) = tagged(book, tag)
        places[tag] = book.cells.index(cell)
    assert 0 < places["setup"] < places["parameters"] < places["summary"] < places["record"]
    assert book.cells[0].cell_type == "markdown" and book.cells[0].source.startswith("# ")
    for tag in ("setup", "record"):
        hidden = book.cells[places[tag]].metadata
        assert hidden.get("jupyter", {}).get("source_hidden") and hidden.get("_kg_hide-input")


def test_every_notebook_has_the_same_setup():
    cells = [tagged(nbformat.read(path, 4), "setup")[0].source for path in PATHS]
    assert len(set(cells)) == 1


def test_its_cells_are_short_and_say_no_prose_by_conditions(book):
    for cell in code(book):
        if "setup" in tags(cell):
            continue
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert len(lines) <= 15 and max(map(len, lines)) <= 100, cell.source
        composed = "Markdown(" in cell.source and re.search(r"\bif\b.+\belse\b", cell.source, re.S)
        assert not composed, cell.source


def test_its_parameters_are_literals_with_a_comment(book):
    (cell,) = tagged(book, "parameters")
    for node in ast.parse(cell.source).body:
        assert isinstance(node, ast.Assign) and node.targets[0].id.isupper()
        ast.literal_eval(node.value)
    assert all("#" in line for line in cell.source.splitlines() if re.match(r"[A-Z_]+ =", line))


def test_what_it_takes_from_other_notebooks_it_asks_for_where_it_finds_its_corpus(book):
    """In its first cells: what is not attached shall not show after an hour of training."""
    for cell in code(book):
        assert "load_run(" not in cell.source or "find_corpus(" in cell.source, cell.source


def test_a_clock_waits_for_the_gpu_that_it_times(book):
    """Given no device, torch waits for the current one: the first, whichever DEVICE names."""
    assert "synchronize()" not in "\n".join(cell.source for cell in code(book))


def test_questions_are_answered(book):
    """Each question has its answer before the next is asked: the answer sheet pairs them so."""
    asked = answered = 0
    for cell in book.cells:
        if "answer" in tags(cell):
            assert cell.cell_type == "markdown" and cell.source.startswith("**Answer.** ")
            answered += 1
        elif cell.cell_type == "markdown":
            asked += len(re.findall(r"^> \*\*Question", cell.source, re.M))
        assert 0 <= asked - answered <= 1, cell.source
    assert asked == answered


def test_it_ends_with_exercises_and_references(book):
    prose = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    exercises = re.findall(r"\*\*Exercise \d\.\*\*", prose)
    assert 2 <= len(exercises) <= 4 and prose.count("<summary>Answer</summary>") >= len(exercises)
    assert re.search(r"^## References", prose, re.M) and "](http" in prose


def test_most_outputs_are_compared(path, book):
    """What depends on the end of a training is not; what stands before it is."""
    shown = [cell for cell in code(book) if cell.outputs]
    ignored = [cell for cell in shown if IGNORED in tags(cell)]
    assert len(ignored) <= 0.6 * len(shown)
    for cell in ignored:
        text = json.dumps(cell.outputs)
        assert "parameters, " not in text or "batches an epoch" not in text, cell.source


def test_what_is_compared_is_no_end_of_a_training(book):
    """A training's log is one output whose text never changes."""
    for cell in code(book):
        for output in cell.outputs:
            log = 'details class="epochs"' in str(output.get("data", {}).get("text/html", ""))
            assert not log or output.data["text/plain"] == "training log"
