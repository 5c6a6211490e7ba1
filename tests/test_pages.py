"""The pages, the PDF and the zip.   pytest tests/test_pages.py"""

import base64
import hashlib
import io
import json
import multiprocessing
import re
import shutil
import subprocess
import time
import zipfile
from html.parser import HTMLParser

import nbformat
import numpy as np
import pytest
from PIL import Image

from labhelpers.metrics import Difference, Estimate
from labhelpers.records import as_json
from scripts import pages
from scripts.clean import Cleaner
from scripts.pages import Page, contents, draws, headline, kind_of, scores, write_report
from scripts.report import ReportError, load_state

V4 = nbformat.v4


def png(width=60, height=40):
    stream = io.BytesIO()
    Image.new("RGB", (width, height), "navy").save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def figure(caption="a figure", key=False):
    metadata = {"caption": caption, "key": key, "image/png": {"alt": caption, "width": 400}}
    return V4.new_output("display_data", {"image/png": png(), "text/plain": "x"}, metadata=metadata)


def shown(kind, text, **metadata):
    return V4.new_output("display_data", {kind: text}, metadata=metadata)


TABLE = "<table><tr><th></th><th>accuracy</th></tr><tr><th>CNN</th><td>0.75</td></tr></table>"


def code(source, *outputs, tags=()):
    cell = V4.new_code_cell(source, outputs=list(outputs), execution_count=1)
    cell.metadata["tags"] = list(tags)
    return cell


def text(source, *tags):
    cell = V4.new_markdown_cell(source)
    cell.metadata["tags"] = list(tags)
    return cell


def save(out, name, *cells):
    path = out / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(V4.new_notebook(cells=list(cells)), path)
    return path


def save_record(out, name, results):
    content = {
        "notebook": name, "corpus": {}, "params": {}, "versions": {"torch": "2"}, "models": {},
        "histories": {}, "predictions": [],
        "results": {key: as_json(value) for key, value in results.items()},
    }  # fmt: skip
    path = out / "records" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def estimate(value):
    return Estimate(value, value - 0.05, value + 0.05, 0.01, 3, 200)


RESULTS = {
    "CNN mel accuracy": estimate(0.75), "CNN mel macro-F1": estimate(0.7),
    "SVM descriptors accuracy": estimate(0.74), "majority class accuracy": estimate(0.2),
    "CNN mel + SVM descriptors accuracy": estimate(0.8),
    "CNN mel - SVM descriptors accuracy": Difference(0.01, -0.02, 0.04, 2, 3, 200),
    "LSTM mel validation accuracy": estimate(0.99), "CNN mel Pop recall": 0.4,
    "CNN three heads rho mean": estimate(0.6), "SVR descriptors rho mean": estimate(0.67),
    "mean label rho mean": estimate(0.0),
    "SVR descriptors - CNN three heads rho mean": Difference(0.07, 0.01, 0.12, 3, 3, 200),
}  # fmt: skip


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A report folder with two notebooks and their pages."""
    out = tmp_path_factory.mktemp("report")
    save(
        out, "05_lstm",
        text("# Step 5: LSTM\n\nSee [notebook 06](06_evaluation.ipynb#6α-accuracy), [lost]"
             "(06_evaluation.ipynb#nowhere), [gone](99_x.ipynb), [here](#5β-beat), [web](https://a.b)"),
        text("## The *loss*: $-\\ln p$\n\ntext"),
        code("import os", tags=["setup"]),
        text("> **5α.** Train an LSTM.\n> It reads mel spectrograms.\n>\n> **5ζ.** Why?"),
        text("> **Hint.** Use a validation set."),
        text("### By hand\n\n<details><summary>Answer</summary>\n\n**yes**\n\n</details>"),
        code("for i in range(3):\n    train()", V4.new_output("stream", name="stdout",
             text="".join(f"epoch {i}  train_loss {1 / (i + 1):.3f}\n" for i in range(5)))),
        code("plots.show(fig, 'x')", figure("losses of $n$ networks", key=True),
             shown("text/markdown", "*Figure: x*", is_caption=True)),
        text("**Answer.** The LSTM reaches 0.66, see notebook [06](06_evaluation.ipynb).\n\nWhy: "
             "windows.\n\n<!-- 0.66 sample LSTM mel accuracy -->", "answer"),
        text("### By hand\n\nagain"),
        text("## 5β. Beat"),
    )  # fmt: skip
    save(
        out, "06_evaluation",
        text("# Step 6: Evaluation"), text("## 6α. Accuracy"),
        text("> **6α.** Compute the accuracy."),
        code("table(x)", shown("text/html", TABLE, caption="accuracy of all", key=True)),
        text("**Answer.** ![x](http://127.0.0.1:9/x.png) #panic() $x$ \\*", "answer"),
        code("1 / 0", V4.new_output("error", ename="ZeroDivisionError", evalue="division")),
    )  # fmt: skip
    save_record(out, "06_evaluation", RESULTS)
    save_record(out, "08_affect", RESULTS)
    write(out, author="Ada Lovelace")
    return out


def write(out, **options):
    state = load_state(out)
    names = [f"notebooks/{path.name}" for path in (out / "notebooks").glob("*.ipynb")]
    state["files"] = sorted({*state["files"], *names})
    corpus = {"name": "tiny", "root": "", "sample": True, "counts": []}
    return write_report(out, {**state, "corpus": corpus, **options})


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def elements(path):
    return Elements(path.read_text(encoding="utf-8")).found


def test_every_link_resolves(out):
    ids = {p: {a["id"] for _, a in elements(p) if "id" in a} for p in out.rglob("*.html")}
    assert len(ids) == 3
    for page in ids:
        for tag, attributes in elements(page):
            target = attributes.get("href", "") if tag == "a" else ""
            if not target or target.startswith("https://"):
                continue
            there, _, place = target.partition("#")
            path = (page.parent / there).resolve() if there else page
            assert path.is_file(), target
            assert not place or place in ids[path], target
    body = (out / "html" / "05_lstm.html").read_text()
    assert 'href="06_evaluation.html#6α-accuracy"' in body and 'href="06_evaluation.html"' in body
    assert "99_x" not in body


def test_contents_have_every_heading_nested(out):
    page = Page(out / "notebooks" / "05_lstm.ipynb", ["05_lstm"])
    found = re.findall(r'<h[2-6] id="([^"]+)"', page.body)

    def listed(tree):
        return [i for name, _, children in tree for i in (name, *listed(children))]

    tree = contents(page.headings)
    assert listed(tree) == found == ["the-loss-ln-p", "by-hand", "by-hand-2", "5β-beat"]
    assert [name for name, _, _ in tree] == ["the-loss-ln-p", "5β-beat"]


def test_a_notebooks_page(out):
    body = (out / "html" / "05_lstm.html").read_text()
    assert "Figure 5.1.</b> Losses of $n$" in body
    assert "Figure: x" not in body  # the caption for notebooks
    assert body.count('<details class="code" open>') == 1  # the loop; what draws is closed
    assert "Training log, at its end: epoch 4" in body
    assert '<mspace width="0.17em">' in body
    assert "<details><summary>Answer</summary>" in body.replace(' open=""', "")
    assert "0.66 sample LSTM" not in body
    assert "ZeroDivisionError" in (out / "html" / "06_evaluation.html").read_text()


def test_scripts_of_the_page_alone_may_run(out):
    for path in out.rglob("*.html"):
        text = path.read_text()
        policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
        assert "default-src 'none'" in policy and "unsafe-inline'; script" in policy
        for script in re.findall("<script>(.*?)</script>", text, re.S):
            digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy


def test_index_says_who_wins(out):
    index = (out / "index.html").read_text()
    assert "No network beats the best baseline: CNN three heads 0.60, SVR descriptors 0.67" in index
    assert "cannot be told apart: CNN mel 0.75, SVM descriptors 0.74" in index
    assert index.count('class="card book"') == 2 and index.count("data:image/webp") == 1
    assert "0.99" not in index  # validation is no result


def test_kinds_of_models():
    names = {
        "CNN mel": "network", "LSTM mel+": "network", "SVM mel": "baseline",
        "untrained CNN + SVM": "baseline", "CNN mel + SVM descriptors": "both",
        "majority class": "baseline", "CNN three heads": "network", "blend": "both",
        "mean of three CNNs": "network", "one network an axis": "network",
    }  # fmt: skip
    assert {name: kind_of(name) for name in names} == names
    tables = scores({"06_evaluation": RESULTS, "08_affect": RESULTS, "04_data": {"x accuracy": 1}})
    assert list(tables["genre"])[0] == "CNN mel + SVM descriptors"
    assert len(tables["genre"]) == 4 and len(tables["affect"]) == 3
    labels = [row["label"] for row in headline("genre", tables["genre"], {})["rows"]]
    assert labels == ["networks alone", "baselines alone", "together", "guessing"]


def test_code_that_draws_is_closed():
    assert draws("x = 1\nplots.show(fig, 'a')") and draws("for c in clips:\n    player(c)")
    assert draws("result_table(results, models)")
    assert not draws("losses = fit(model)") and not draws("def show(x):\n    return plt.plot(x)")
    assert not draws("%time fit()") and not draws("")


def test_pdf_has_answers_tables_and_no_links_into_the_series(out):
    said = None
    if shutil.which("pdftotext"):
        command = ["pdftotext", "-layout", str(out / "report.pdf"), "-"]
        said = subprocess.run(command, capture_output=True, text=True)
    assert (out / "report.pdf").read_bytes()[:5] == b"%PDF-"
    if said is None:
        pytest.skip("pdftotext is not there")
    words = " ".join(said.stdout.split())
    for part in (
        "Ada Lovelace",
        "0.66",
        "Train an LSTM.",
        "Figure 1",
        "SVR descriptors",
        "Method.",
    ):
        assert part in words, part
    assert "panic()" in words and "Hint" not in words and "sample LSTM mel accuracy" not in words
    assert b"06_evaluation.ipynb" not in (out / "report.pdf").read_bytes()


def test_zip_is_of_these_files_and_the_same_twice(out):
    path = next(out.glob("*.zip"))
    assert path.name == "music-tiny-Ada-Lovelace.zip"
    names = zipfile.ZipFile(path).namelist()
    inside = {name.removeprefix("music-tiny-Ada-Lovelace/") for name in names}
    assert {"report.pdf", "index.html", "html/05_lstm.html", "notebooks/05_lstm.ipynb"} <= inside
    assert "labhelpers/audio.py" in inside and not any(".." in name for name in inside)


def test_a_second_time_nothing_is_written(out):
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert "up to date" in write(out, author="Ada Lovelace")
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    (out / "html" / "05_lstm.html").unlink()  # lost: it comes back
    write(out, author="Ada Lovelace")
    assert (out / "html" / "05_lstm.html").is_file()


def test_without_pandoc_there_is_an_index(tmp_path, monkeypatch):
    save(tmp_path, "05_lstm", text("# Step 5"))
    save_record(tmp_path, "06_evaluation", RESULTS)
    found = pages.importlib.util.find_spec
    monkeypatch.setattr(
        pages.importlib.util, "find_spec", lambda n: None if n == "pypandoc" else found(n)
    )
    assert "pandoc is missing" in write(tmp_path)
    index = (tmp_path / "index.html").read_text()
    assert 'href="notebooks/05_lstm.ipynb"' in index and "0.75" in index
    assert not (tmp_path / "report.pdf").exists() and not (tmp_path / "html").exists()


def test_only_own_files_are_replaced_or_removed(tmp_path):
    save(tmp_path, "05_lstm", text("# Step 5"))
    save(tmp_path, "06_evaluation", text("# Step 6"))
    (tmp_path / "html").mkdir()
    for name in ("thesis.pdf", "html/homepage.html"):
        (tmp_path / name).write_text("mine")
    write(tmp_path)
    (tmp_path / "notebooks" / "06_evaluation.ipynb").unlink()
    write(tmp_path)
    assert not (tmp_path / "html" / "06_evaluation.html").exists()
    assert (tmp_path / "thesis.pdf").read_text() == "mine"
    assert (tmp_path / "html" / "homepage.html").read_text() == "mine"
    other = tmp_path / "other"
    save(other, "05_lstm", text("# Step 5"))
    (other / "report.pdf").write_text("mine")
    with pytest.raises(ReportError, match="report.pdf"):
        write(other)
    assert (other / "report.pdf").read_text() == "mine" and not (other / ".pages").exists()


def test_a_kill_while_pages_are_written_leaves_the_old_ones(out):
    before = {path: path.read_bytes() for path in out.rglob("*.*") if path.suffix in pages.OWN}
    other = {"author": "Somebody else"}
    process = multiprocessing.get_context("fork").Process(target=write, args=(out,), kwargs=other)
    process.start()
    while not (out / ".pages").exists() and process.is_alive():
        time.sleep(0.01)
    time.sleep(0.1)
    process.kill()
    process.join()
    assert (out / ".pages").exists()
    assert before == {path: path.read_bytes() for path in before}
    write(out, author="Ada Lovelace")  # and what it left is no hindrance
    assert not (out / ".pages").exists()


# What a notebook from somebody else may hold, and what must not be in a page.
PAYLOADS = [
    '<script>alert(1)</script>', '<img src=x onerror=alert(1)>',
    '<audio src="x"onerror=alert(1)>', '<details open="1"ontoggle=alert(1)>x</details>',
    '<b a=">"onmouseover=alert(1)>x</b>', "<b a='>' onclick=alert(1)>x</b>",
    '[l](javascript:alert(1))', '<a href="javascript:alert(1)">x</a>',
    '<a href=" java\tscript:alert(1)">x</a>', '<img src="http://127.0.0.1:8099/hit.png">',
    '![i](http://127.0.0.1:8099/hit.png)', '![i](file:///etc/passwd)',
    '<b style="position:fixed;inset:0">x</b>', '<iframe src="javascript:alert(1)"></iframe>',
    '<svg onload=alert(1)><script>alert(1)</script></svg>', '<style>@import "http://x";</style>',
    '<math><maction actiontype="statusline" xlink:href="javascript:alert(1)">x</maction></math>',
    '<form action="http://x"><input autofocus onfocus=alert(1)></form>', '<base href="http://x/">',
    '<meta http-equiv="refresh" content="0;url=javascript:alert(1)">', '<object data="x"></object>',
    '<a href="data:text/html,<script>alert(1)</script>">x</a>', '<x onclick=alert(1)>x</x>',
    '<img src="data:image/svg+xml,<svg onload=alert(1)>">', '</div></main><script>alert(1)',
    '<noscript><p title="</noscript><img src=x onerror=alert(1)>">', '<!--><script>alert(1)-->',
]  # fmt: skip


@pytest.mark.parametrize("payload", PAYLOADS)
def test_payloads_are_dead(payload):
    assert_dead(Cleaner().clean(payload))


def assert_dead(body):
    for tag, attributes in Elements(body).found:
        assert tag not in ("script", "style", "iframe", "svg", "form", "input", "object", "base")
        assert tag not in ("meta", "embed", "x", "maction")
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name != "style" or "position" not in value
            if name in ("href", "src", "xlink:href"):
                assert re.match("https?://|#|data:(image|audio)/[a-z+]+;base64,|[0-9]", value), (
                    value
                )


def test_payloads_in_a_notebook_are_dead_everywhere(tmp_path):
    cells = [text(f"# Evil {PAYLOADS[0]}")]
    for payload in PAYLOADS:
        table = TABLE.replace("0.75", payload)
        cells += [
            text(payload, "answer"),
            code(f"# {payload}", shown("text/html", payload), shown("text/html", table, key=True,
                 caption=payload), shown("text/markdown", payload), figure(payload, key=True),
                 V4.new_output("stream", text=payload)),
        ]  # fmt: skip
    save(tmp_path, "05_evil", *cells)
    write(tmp_path, author=PAYLOADS[0], course="#panic()$]")
    page = Page(tmp_path / "notebooks" / "05_evil.ipynb", ["05_evil"])
    assert_dead(page.body)
    for path in tmp_path.rglob("*.html"):
        html = path.read_text()
        assert "alert(1)" not in "".join(re.findall("<script>.*?</script>", html, re.S))
        assert html.count("<script") == html.count("</script") <= 2
    assert (tmp_path / "report.pdf").is_file()


def test_harmless_html_stays():
    sound = "data:audio/mpeg;base64,AAAA"
    for html in (
        '<table><thead><tr><th scope="col">a</th></tr></thead></table>',
        f'<audio controls="" src="{sound}"></audio>',
        '<td style="text-align: right;">one</td>', "<details><summary>x</summary></details>",
        '<a href="https://a.b/c?d=1&amp;e">x</a>', "<sub>1</sub>", "a &lt; b &amp; c",
        f'<img src="data:image/png;base64,{png()}" alt="a &quot;b&quot;">',
    ):  # fmt: skip
        cleaned = Cleaner(lambda target: target).clean(html)
        assert (
            cleaned.replace('<div class="scroll">', "").replace("</table></div>", "</table>")
            == html
        )


def test_places_on_the_map_are_between_0_and_1():
    from scripts.clips import spread

    places = spread(np.random.default_rng(0).normal(size=(20, 4)))
    assert places.shape == (20, 2) and places.min() == 0 and places.max() == 1
