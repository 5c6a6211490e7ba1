"""What a run leaves to read and to hand in, from two executed notebooks and a record made here."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import numpy as np
import pytest
from helpers_corpus import make_corpus
from PIL import Image

from labhelpers.metrics import Estimate, result_rows
from labhelpers.records import save_run
from labhelpers.series import cli, notebooks, pages, results
from labhelpers.series.clips import clip_page
from labhelpers.series.run import rewrite_report

v4 = nbformat.v4
ROOT = Path(__file__).resolve().parents[1]


def picture(size=(600, 300)):
    values = np.linspace(0, 255, size[0] * size[1]).reshape(size[::-1]).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def shown(data, text="text", **metadata):
    return v4.new_output("display_data", data={**data, "text/plain": text}, metadata=metadata)


def printed(text):
    return v4.new_output("stream", name="stdout", text=text)


def code(source, *outputs, tags=()):
    cell = v4.new_code_cell(source, execution_count=1, outputs=list(outputs))
    cell.metadata["tags"] = list(tags)
    return cell


def prose(source, *tags):
    cell = v4.new_markdown_cell(source)
    cell.metadata["tags"] = list(tags)
    return cell


TABLE = """<table border="0"><thead><tr><th></th><th>F1</th><th>genre</th></tr>
<tr><th>model</th><th></th><th></th></tr></thead>
<tbody><tr><th>CNN</th><td><strong>0.5</strong></td><td>&lt;script&gt;</td></tr></tbody></table>"""
FIGURE = "How the loss falls, with $\\rho$"


def first_book():
    """A notebook to the series' conventions."""
    image = {"alt": 'a "falling" line', "width": 600}
    caption = shown({"text/markdown": f"*Figure: {FIGURE}*"}, is_caption=True)
    lines = "\n".join(f"epoch {i}" for i in range(40))
    return v4.new_notebook(
        cells=[
            prose("# Step 5: The first\n\nYou will see what is used (notebook 06) later."),
            code("import sys", tags=["setup"]),
            code("SEED = 0", tags=["parameters"]),
            code("import numpy", printed("Corpus: tiny")),
            prose("## 5α. An LSTM\n\nWith $\\rho = \\frac{a}{b}$; see [below](#5β.-Two)."),
            prose("> **Question 5α.1** How many time steps?\n> Is that many?"),
            code("print(1)", printed(lines)),
            prose("**Answer.** There are 431 of them, as step 6, too.\n\nMore on it.", "answer"),
            code(
                "show(fig)",
                shown({"image/png": picture()}, caption=FIGURE, key=True, **{"image/png": image}),
                caption,
                shown({"text/html": TABLE}, caption="All models"),
            ),
            code("player()", shown({"text/html": '<audio src="data:audio/mpeg;base64,A"/>'})),
            code(
                "fit()",
                shown(
                    {
                        "text/html": '<details class="epochs"><summary>the last</summary>'
                        "<pre>all\nlines</pre></details>"
                    }
                ),
            ),
            prose("## 5β. Two\n\n<details><summary>Answer</summary>\n\nIt is *so*.\n\n</details>"),
            prose('Of <script>alert(1)</script> and <b onclick="x()">bold</b>'),
            prose("## In short\n\nThe LSTM learned; the result is **seven**.", "summary"),
            code("save_run()", printed("Recorded in x"), tags=["record"]),
        ]
    )


def second_book():
    return v4.new_notebook(
        cells=[
            prose(
                "# Step 6: The second\n\n"
                "Reads [the first](05_lstm.ipynb#5β.-Two) and [none](77_x.ipynb)."
            ),
            code("1", tags=["parameters"]),
            prose("> **Question 6α.1** Why?"),
            prose("**Answer.** Because.", "answer"),
        ]
    )


def estimate(value, n=9, seeds=1):
    return Estimate(value, value - 0.1, value + 0.1, 0.01, seeds, n)


def rows(model, value, baseline=False, where="test", seeds=1):
    scores = {"accuracy": estimate(value, 9, seeds), "macro_f1": estimate(value - 0.05, 9, seeds)}
    return result_rows(model, "genre", "mel", where, baseline, **scores)


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """What a run left in its folder, before the pages are written; and its corpus."""
    corpus = make_corpus(tmp_path_factory.mktemp("corpus") / "tiny")
    folder = tmp_path_factory.mktemp("left") / "out"
    (folder / "notebooks").mkdir(parents=True)
    for name, book in (("05_lstm", first_book()), ("06_evaluation", second_book())):
        nbformat.write(book, folder / "notebooks" / f"{name}.ipynb")
    listed = rows("majority class", 2 / 9, True) + rows("SVM", 5 / 9, True)
    listed += rows("CNN", 7 / 9, seeds=3) + rows("CNN", 0.9, where="validation")
    save_run("06_evaluation", corpus, folder, results=listed)
    guesses = ["Rock", "Jazz</script>", *["Rock"] * 7]
    places = {
        "ids": corpus.labels("genre", "test")["id"].tolist(),
        "x": list(range(9)),
        "y": [0] * 9,
        "genre": ["Rock"] * 9,
        "predicted": guesses,
    }
    save_run("07_cnn", corpus, folder, facts={"map": places})
    (folder / "solution.txt").write_text("Id,valence\n")
    counts = corpus.describe().to_dict("records")
    about = {"name": "tiny", "sample": False, "root": str(corpus.root), "counts": counts}
    (folder / "run.json").write_text(json.dumps({"corpus": about}))
    return folder, corpus


@pytest.fixture
def out(left, tmp_path):
    """A copy of it, to write pages into and to spoil."""
    return Path(shutil.copytree(left[0], tmp_path / "out"))


@pytest.fixture(scope="module")
def written(left):
    """The same with its pages, to be read only."""
    folder = Path(shutil.copytree(left[0], left[0].with_name("written")))
    rewrite_report(folder, author="Maria", course="Patterns")
    return folder


class Links(HTMLParser):
    """What a page links to, and what in it can be linked to."""

    def __init__(self, text):
        super().__init__()
        self.targets, self.ids, self.alts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.targets += [attributes[key] for key in ("href", "src") if key in attributes]
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag == "img":
            self.alts.append(attributes.get("alt"))


def check_links(folder):
    """Every link and anchor between the pages of a folder leads somewhere, without a network."""
    for page in [folder / "index.html", *(folder / "html").glob("*.html")]:
        found = Links(page.read_text())
        assert len(found.ids) == len(set(found.ids)), page
        for target in found.targets:
            if target.startswith("data:") or not target:
                continue
            assert not target.startswith("//"), (page, target)
            if target.startswith("http"):
                continue
            path, _, anchor = unquote(target).partition("#")
            there = (page.parent / path).resolve() if path else page
            assert there.is_file(), (page.name, target)
            if anchor:
                assert anchor in Links(there.read_text()).ids, (page.name, target)


def text_of(pdf, *options):
    done = subprocess.run(["pdftotext", *options, pdf, "-"], capture_output=True, text=True)
    return re.sub(r"\s+", " ", done.stdout)


def test_a_page_has_contents_captions_and_links(written):
    page = (written / "html" / "05_lstm.html").read_text()
    found = Links(page)
    assert "05_lstm-5α-an-lstm" in found.ids and "#05_lstm-5β-two" in found.targets
    assert 'aria-label="On this page"' in page and "../notebooks/05_lstm.ipynb" in found.targets
    assert page.count("<math") == 2  # one in the text, one in a caption
    figure = re.search(r"<figcaption>.*?</figcaption>", page, re.S)[0]
    assert (
        "Figure 5.1." in figure
        and "How the loss falls" in figure
        and page.count("How the loss") == 1
    )
    assert 'a "falling" line' in found.alts and "<strong>0.5</strong>" in page
    caption = re.search(r"<caption>.*?</caption>", page, re.S)[0]
    assert "Table 5.1." in caption and "All models" in caption
    head = re.search(r"<thead>.*?</thead>", page, re.S)[0]
    assert head.count("<tr>") == 1 and "model" in head  # pandas takes two rows
    assert page.count("Set-up and parameters") == 1 and "Recorded in" not in page
    assert "06_evaluation.html" in found.targets and "<em>so</em>" in page
    assert "Step 6: The second →" in page  # titles, not file names


def test_what_labels_say_does_nothing_in_a_page(written):
    page = (
        (written / "html" / "05_lstm.html").read_text().split("<article>")[1].split("</article>")[0]
    )
    assert "<script" not in page and "&lt;script" in page and "<b onclick" not in page
    assert "Jazz</script>" not in (written / "html" / "clips.html").read_text()


def test_every_link_leads_somewhere_in_the_zip_too(written, tmp_path):
    check_links(written)
    with zipfile.ZipFile(written / "deliverable.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    (top,) = (tmp_path / "unpacked").iterdir()
    check_links(top)
    assert {"report.pdf", "appendix.pdf", "solution.txt", "README.md", "Makefile"} <= {
        p.name for p in top.iterdir()
    }
    assert (top / "labhelpers" / "series" / "templates" / "notebook.lua").is_file()
    for link in re.findall(r"\]\((?!http)([^)#\s]+)", (top / "README.md").read_text()):
        if not link.startswith("notebooks/"):  # the executed ones: here, two of them
            assert (top / link).exists(), link


def test_the_index_answers_at_once(written):
    page = (written / "index.html").read_text()
    assert "Genre: 7 of 9 test clips right (CNN, mean of 3 seeds); SVM 5, majority class 2." in page
    assert page.index("0.73") < page.index('id="notebooks"') < page.index('id="corpus"')
    assert page.index('id="more"') < page.index("Genre, validation") and "Maria · Patterns" in page
    assert "solution.txt" in page and "clips.html" in page and len(page) < 2_000_000
    best = re.findall(r'class="best"><strong>([\d.]+)', page)
    assert best[:2] == ["0.78", "0.73"]


def test_the_answer_sheet_takes_the_first_paragraph(written):
    page = (written / "html" / "answers.html").read_text()
    assert (
        "How many time steps?" in page
        and "Is that many?" in page
        and "431" in page
        and "More on it" not in page
    )
    assert page.count("In its place") == 2
    places = [target for target in Links(page).targets if target.startswith("05_lstm.html#")]
    assert places  # check_links follows them


def test_the_pdfs(written):
    if not shutil.which("pdftotext"):
        pytest.skip("no pdftotext")
    short, full = (text_of(written / name) for name in ("report.pdf", "appendix.pdf"))
    for said in (
        "Maria · Patterns",
        "Step 5: The first",
        "the result is seven",
        "Figure 5.1.",
        "7 of 9",
    ):
        assert said in short, said
    assert "In short" not in short and "More on it" not in short and "Code" not in short
    assert short.index("Step 5") < short.index("Step 6")
    for said in (
        "More on it",
        "Table 5.1. All models",
        "lines more in the HTML report",
        "The sound is",
        "the last",
    ):
        assert said in full, said
    assert "Recorded in" not in full and "import sys" not in full
    raw = (written / "appendix.pdf").read_bytes()
    assert b"/Author" in raw and b"falling" in text_bytes(written / "appendix.pdf")


def text_bytes(pdf):
    done = subprocess.run(["pdfinfo", "-struct-text", pdf], capture_output=True)
    return done.stdout + pdf.read_bytes()


def test_neither_corpus_nor_a_whole_run_is_needed(out, capsys):
    (out / "run.json").write_text(
        '{"notebooks": {"05_lstm": {"state": "done"}, "06_evaluation": 7}}'
    )
    (out / "notebooks" / "06_evaluation.ipynb").write_text("")  # a kill while it was written
    (out / "records" / "05_lstm.json").write_text('{"notebook"')
    assert cli.main(["pages", str(out)]) == 0
    said = capsys.readouterr().out
    assert (
        "05_lstm.json: not a record" in said
        and "06_evaluation.ipynb: not an executed notebook" in said
    )
    assert said.splitlines()[-1] == (out / "index.html").as_uri() and "7 of 9 test clips" in said
    assert "tiny" in (out / "index.html").read_text()


def test_without_pandoc_the_index_links_to_the_notebooks(out, monkeypatch):
    monkeypatch.setitem(sys.modules, "typst", None)
    monkeypatch.setattr(pages, "can_set", lambda: False)
    rewrite_report(out)
    html = (out / "index.html").read_text()
    assert 'href="notebooks/05_lstm.ipynb"' in html and "report.pdf" not in html
    assert not (out / "report.pdf").exists()


def test_a_formula_that_typst_cannot_set_costs_one_pdf_only(out, monkeypatch, caplog):
    monkeypatch.setattr(pages, "convert", broken(pages.convert))
    rewrite_report(out)
    assert "could not be set" in caplog.text and not (out / "report.pdf").exists()
    assert "report.pdf" not in (out / "index.html").read_text() and check_links(out) is None


def broken(convert):
    def converted(book, name, names, form, folder, **options):
        return convert(book, name, names, form, folder, **options) + "$ nosuchsymbol $" * (
            form == "typst"
        )

    return converted


def test_the_same_bytes_for_the_same_content(out):
    rewrite_report(out)
    names = ("index.html", "report.pdf", "appendix.pdf", "deliverable.zip", "html/05_lstm.html")
    before = {name: (out / name).read_bytes() for name in names}
    rewrite_report(out)
    assert before == {name: (out / name).read_bytes() for name in names}


def test_a_record_without_a_map_will_do_where_the_corpus_is(left, tmp_path):
    corpus = left[1]
    ids = corpus.labels("genre", "test")["id"].tolist()
    classes = ["Blues", "Jazz", "Rock"]
    values = np.eye(3)[[0, 1, 2] * 3] * 0.9 + 0.03
    said = {("CNN mel", "test"): (ids, [values, values])}
    save_run("07_cnn", corpus, tmp_path, facts={"classes": classes}, predictions=said)
    records = results.read_records(tmp_path)
    page = clip_page(records, str(corpus.root))
    assert [clip["predicted"] for clip in page["clips"]] == classes * 3
    assert page["clips"][0]["genre"] == "Rock" and page["clips"][0]["picture"].startswith("data:")
    first, second, _, again = [(clip["x"], clip["y"]) for clip in page["clips"][:4]]
    assert first == again != second
    assert clip_page(records, "") is None and clip_page({}, str(corpus.root)) is None


# --- results --------------------------------------------------------------------------------------


class Record:
    def __init__(self, *listed):
        self.results = [row for part in listed for row in part]


def affect(model, value, where, baseline=False):
    axes = {axis: estimate(value) for axis in ("valence", "energy", "danceability", "mean")}
    return result_rows(model, "affect", "mel", where, baseline, **axes)


def test_a_task_is_read_where_networks_meet_baselines():
    records = {
        "08": Record(affect("CNN", 0.4, "held-out"), affect("SVR", 0.6, "held-out", True)),
        "10": Record(affect("blend", 0.7, "test")),
    }
    held_out, test = results.tables(records)
    assert (held_out.where, test.where) == ("held-out", "test")
    assert [row.model for row in held_out.rows] == ["SVR", "CNN"] and held_out.best.model == "CNN"
    assert held_out.headline == "mean" and held_out.metrics[0] == "valence"
    assert results.headlines(records) == [
        "Affect: mean ρ 0.40 on 9 held-out clips (CNN); SVR 0.60."
    ]


def test_rows_of_an_axis_stand_side_by_side():
    each = result_rows("CNN", "valence", "mel", "held-out", False, rho=estimate(0.3))
    (table,) = results.tables({"08": Record(each, affect("SVR", 0.6, "held-out", True))})
    assert table.metrics == ["valence", "energy", "danceability", "mean"]
    assert not table.is_best(table.rows[1], "valence")


@pytest.mark.parametrize("name", ["mean", "mean_rho", "mean_spearman"])
def test_affect_is_judged_by_the_mean_whatever_its_name(name):
    scores = {"valence": estimate(0.9), name: estimate(0.3)}
    (table,) = results.tables({"08": Record(result_rows("CNN", "affect", "mel", "test", **scores))})
    assert table.headline == name and results.measure(name) == "mean ρ" and results.MEANING[name]


def test_a_later_notebooks_word_counts():
    (table,) = results.tables({"06": Record(rows("CNN", 0.5)), "07": Record(rows("CNN", 0.3))})
    assert table.rows[0].cells["accuracy"]["value"] == 0.3
    assert not table.is_best(table.rows[0], "accuracy")  # nothing to be better than


# --- executed notebooks ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "output, said",
    [
        (v4.new_output("stream", name="stderr", text="UserWarning: x"), "wrote to stderr"),
        (
            v4.new_output("stream", name="stdout", text="in /usr/lib/site-packages/x.py"),
            "a path of",
        ),
        (shown({"text/html": f"<b>{Path('/', 'home', 'me')}</b>"}), "a path of this machine"),
        (shown({"image/png": base64.b64encode(b"").decode()}), None),
        (shown({"application/vnd.jupyter.widget-view+json": {}}), "a widget"),
        (v4.new_output("error", ename="KeyError", evalue="", traceback=[]), "ended with KeyError"),
        (v4.new_output("stream", name="stdout", text="fine"), ""),
    ],
)
def test_what_readers_should_not_meet_is_noticed(output, said):
    if said is None:
        stream = io.BytesIO()
        Image.new("RGB", (9, 9), "white").save(stream, "PNG")
        output.data["image/png"], said = (
            base64.b64encode(stream.getvalue()).decode(),
            "empty figure",
        )
    found = notebooks.faults(v4.new_notebook(cells=[code("x", output)]))
    assert (not found) if said == "" else (said in found[0] and found[0].startswith("cell 1"))


def test_a_cell_that_did_not_run_is_noticed():
    cells = [v4.new_code_cell("x"), v4.new_code_cell("")]
    assert notebooks.faults(v4.new_notebook(cells=cells)) == ["cell 1: did not run"]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_the_committed_notebooks_are_fit_to_be_shown(path):
    assert notebooks.faults(nbformat.read(path, 4)) == []


def test_nothing_damaged_in_run_json_stops_a_run(tmp_path):
    for text in ("[]", '{"notebooks": null}', '{"notebooks": {"a": {}}}', "{"):
        (tmp_path / "run.json").write_text(text)
        assert pages.load_state(tmp_path)["notebooks"] == {}
    entry = {"state": "done", "date": "today", "device": "CPU"}
    (tmp_path / "run.json").write_text(json.dumps({"notebooks": {"a": entry, "b": 3}}))
    assert pages.load_state(tmp_path)["notebooks"] == {"a": entry}
