"""The pages, the PDF and the zip.   pytest tests/test_pages.py"""

import base64
import hashlib
import json
import multiprocessing
import re
import shutil
import subprocess
import time
import zipfile
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest

from labhelpers.metrics import Difference, Estimate
from labhelpers.records import PROJECT, reference, save_run
from scripts import pages
from scripts.clean import clean
from scripts.clips import clips_of
from scripts.pages import METRICS, MODELS, headline, scores, write_report
from scripts.pdf import FIGURES, answer, shortened
from scripts.report import load_state

V4 = nbformat.v4


PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNgAAAAAgAB5Sfe/AAAAABJRU5ErkJggg=="


def shown(data, **metadata):
    return V4.new_output("display_data", data, metadata=metadata)


def figure(caption):
    return shown({"image/png": PNG}, **{"caption": caption, "image/png": {"width": 400}})


def printed(text):
    return V4.new_output("stream", name="stdout", text=text)


def code(source, *outputs, tags=()):
    return V4.new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags)})


def text(source, *tags):
    return V4.new_markdown_cell(source, metadata={"tags": list(tags)})


def save(out, name, *cells):
    (out / "notebooks").mkdir(exist_ok=True)
    nbformat.write(V4.new_notebook(cells=list(cells)), out / "notebooks" / f"{name}.ipynb")


def save_record(out, name, results, predictions=None):
    (out / "records").mkdir(exist_ok=True)
    save_run(name, CORPUS, out, results=results, predictions=predictions)


CORPUS = SimpleNamespace(name="tiny", fingerprint="x")
TABLE = "<table><tr><th></th><th>accuracy</th></tr><tr><th>CNN</th><td>0.75</td></tr></table>"
LOG = "".join(f"epoch {i}  train_loss {1 / i:.3f}\n" for i in range(1, 6))
SCORES = {
    "genre": {"CNN mel": 0.75, "LSTM mel": 0.6, "SVM descriptors": 0.74, "majority class": 0.2},
    "affect": {"mean of three CNNs": 0.6, "CNN mel": 0.5, "SVR descriptors": 0.67},
}
RESULTS = {
    f"{model} {metric}": Estimate(value, value - 0.05, value + 0.05, 0.01, 3, 200)
    for task, models in SCORES.items()
    for model, value in models.items()
    for metric in METRICS[task]
}
PAIR = "SVR descriptors - mean of three CNNs rho mean"
RESULTS[PAIR] = Difference(0.07, 0.01, 0.12, 3, 3, 200)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A report folder with two notebooks and their pages."""
    out = tmp_path_factory.mktemp("report")
    save(
        out, "05_lstm",
        text("# Step 5: LSTM\n\nSee [notebook 06](06_evaluation.ipynb#6α), [gone](99_x.ipynb), "
             "[here](#5β-beat), [web](https://a.b)"),
        text("## The *loss*: $-\\ln p$\n\n```not closed"),
        code("import os", tags=["setup"]),
        text("> **5α.** Train an LSTM.\n> It reads mel.\n>\n> **5ζ.** Why?\n\n> **Hint.** Wait."),
        text("### By hand\n\n<details><summary>Answer</summary>\n\n**yes**\n\n</details>"),
        code("for i in range(3):\n    train()", printed(LOG)),
        code("plots.show(fig, 'x')", figure(f"{FIGURES[2]} $n$ networks"),
             shown({"text/html": "<p>Figure: x</p>"}, is_caption=True)),
        text("**Answer.** The LSTM reaches 0.66 (notebook 06). See [06](06_evaluation.ipynb)."
             "\n\nMore.\n\n<!-- 0.66 sample LSTM mel accuracy -->", "answer"),
        text("### By hand\n\n**Answer.** Again.", "answer"),
        text("## 5β. Beat"),
        text("## Deeper"),
        text("**Answer.** Only the notebook says this.", "answer"),
    )  # fmt: skip
    save(
        out, "06_evaluation",
        text("# Step 6: Evaluation\n\n> **6α.** Compute the accuracy."),
        code("table(x)", shown({"text/html": TABLE}, caption="accuracy of all")),
        text("**Answer.** ![x](http://127.0.0.1:9/x.png) #panic() \\* `#a()`{=typst}", "answer"),
        code("1 / 0", V4.new_output("error", ename="ZeroDivisionError", evalue="division")),
    )  # fmt: skip
    save_record(out, "06_evaluation", RESULTS)
    write(out)
    return out


def write(out, author="Ada Lovelace", **corpus):
    about = {"name": "tiny", "root": "", "sample": True, "counts": []} | corpus
    state = load_state(out if (out / "run.json").exists() else out / "new")
    return write_report(out, state | {"corpus": about, "author": author})


def elements(page):
    """(tag, attributes) of each element of a page."""
    found, parser = [], HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, dict(attributes)))
    parser.feed(page)
    return found


def test_every_link_resolves(out):
    found = {path: elements(path.read_text()) for path in out.rglob("*.html")}
    ids = {path: {about.get("id") for _, about in found[path]} for path in found}
    links = [(page, about.get("href", "#text")) for page in found for _, about in found[page]]
    assert len(found) == 3
    for page, target in links:
        there, _, place = target.partition("#")
        path = (page.parent / there).resolve() if there else page
        assert target.startswith(("https://", "data:")) or path.is_file(), target
        assert not place or place in ids[path], target


def test_contents_have_every_heading_nested(out):
    page = (out / "html" / "05_lstm.html").read_text()
    contents, body = page.split("</details>", 1)
    headings = re.findall(r'<h[2-6] id="([^"]+)"', body)
    assert re.findall(r'href="#([^"]+)"', contents.split("<nav aria")[1])[1:] == headings
    assert headings == ["the-loss--ln-p", "by-hand", "by-hand-2", "5β-beat", "deeper"]
    assert re.search(r"the-loss.*?<ul>.*by-hand.*?</ul>", contents, re.S)


def test_a_notebooks_page(out):
    page = (out / "html" / "05_lstm.html").read_text()
    assert "<b>Figure 5.1.</b> Learning curves" in page and "$n$ networks" in page
    assert "Figure: x" not in page  # the caption for notebooks
    assert page.count('<details class="code" open') == 1  # the loop; what draws is closed
    assert "Training log, up to epoch 5" in page and '<mspace width="0.17em">' in page
    assert "<strong>yes</strong>" in page and "0.66 sample LSTM" not in page and "99_x" not in page
    other = (out / "html" / "06_evaluation.html").read_text()
    assert "<b>Table 6.1.</b> Accuracy of all" in other and "ZeroDivisionError: division" in other


def test_scripts_of_the_page_alone_may_run(out):
    for path in out.rglob("*.html"):
        page = path.read_text()
        policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
        assert "default-src 'none'" in policy and "unsafe-inline'; script" in policy
        for script in re.findall("<script>(.*?)</script>", page, re.S):
            digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy


def test_index_says_who_wins(out):
    index = (out / "index.html").read_text()
    assert "No network alone beats SVR descriptors." in index
    assert "Not distinguishable: CNN mel and SVM descriptors." in index
    assert index.count('class="card book"') == 2 and index.count("data:image/webp") == 1


def test_headlines():
    tables = scores(RESULTS | {"x accuracy": 1.0})
    models = [model for _, model in tables["affect"]]
    assert models == ["SVR descriptors", "mean of three CNNs", "CNN mel"]  # the best first
    rows = headline("affect", tables["affect"], RESULTS)["rows"]
    assert [row[1] for row in rows] == ["mean of three CNNs", "SVR descriptors"]
    results = RESULTS | {"SVM descriptors accuracy": Estimate(0.6, 0.55, 0.65, 0.01, 3, 200)}
    sentence = headline("genre", scores(results)["genre"], results)["sentence"]
    assert sentence == "The best network, CNN mel, beats every baseline."  # by their intervals
    few = {key: replace(result, n=4) for key, result in results.items()}
    sentence = headline("genre", scores(few)["genre"], few)["sentence"]
    assert sentence.endswith("baseline. Judged by 4 clips alone, this may be chance.")


def test_models_and_figures_are_those_of_the_series():
    for corpus in ("sample", "emotify"):
        results = {key for values in reference(name=corpus).values() for key in values}
        for model in [model for models in MODELS.values() for model in models]:
            assert {f"{model} accuracy", f"{model} rho mean"} & results, model
    sources = "".join(path.read_text() for path in (PROJECT / "notebooks").glob("*.ipynb"))
    assert all(caption in sources for caption in FIGURES)


def test_answers_are_cut_at_sentences():
    said = "> **6α.** asked\n\n**Answer.** It is 0.5 (see below). A reason (a guess). Three:\n\n*"
    assert answer(said, 99) == "It is 0.5. A reason (a guess)."
    assert answer("**Answer, ReLU.** One two. *Three* four.", 4) == "**ReLU.** One two."
    assert shortened("Run `a_b` on *this*\n> [page](x.y). Then stop.") == "Run a_b on this page."


def test_pdf(out):
    assert (out / "report.pdf").read_bytes()[:5] == b"%PDF-"
    if not shutil.which("pdftotext"):
        pytest.skip("pdftotext is not there")
    command = ["pdftotext", "-layout", str(out / "report.pdf"), "-"]
    words = " ".join(subprocess.run(command, capture_output=True, text=True).stdout.split())
    for part in ("Ada Lovelace", "0.66", "Train an LSTM.", "(Figure 1)", "SVR desc", "Method."):
        assert part in words, part
    for part in ("Hint", "sample LSTM mel", "Only the notebook", "See 06", "More."):
        assert part not in words, part
    assert words.count("Train an LSTM.") == 1 and "panic()" in words
    assert b"06_evaluation.ipynb" not in (out / "report.pdf").read_bytes()


def test_zip_holds_what_is_handed_in(out):
    names = zipfile.ZipFile(out / "music-tiny-Ada-Lovelace.zip").namelist()
    for part in ("report.pdf", "html/05_lstm.html", "notebooks/05_lstm.ipynb", "scripts/pdf.py"):
        assert f"music-tiny-Ada-Lovelace/{part}" in names


def files(out):
    return {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def test_a_second_time_nothing_is_written(out):
    before = files(out)
    assert "up to date" in write(out)
    assert before == files(out)
    (out / "html" / "05_lstm.html").unlink()  # lost: it comes back
    write(out)
    assert (out / "html" / "05_lstm.html").is_file()


def test_a_kill_while_pages_are_written_leaves_the_old_ones(out):
    (out / "html" / "thesis.html").write_text("mine")
    before = files(out)
    process = multiprocessing.get_context("fork").Process(target=write, args=(out, "Somebody"))
    process.start()
    while not (out / ".pages").exists() and process.is_alive():
        time.sleep(0.01)
    time.sleep(0.1)
    process.kill()
    process.join()
    assert (out / ".pages").exists() and before.items() <= files(out).items()
    with open(out / "index.html", encoding="utf-8") as index:
        write(out, "Else")  # what the kill left is no hindrance
        assert "Ada Lovelace" in index.read()  # whole files take the place of others
    assert not (out / ".pages").exists()
    assert (out / "html" / "thesis.html").read_text() == "mine"


def test_without_pandoc_there_is_an_index(tmp_path, monkeypatch):
    save(tmp_path, "05_lstm", text("# Step 5"))
    monkeypatch.setattr(pages, "has_libraries", lambda: False)
    assert "No pages, no PDF" in write(tmp_path)
    assert 'href="notebooks/05_lstm.ipynb"' in (tmp_path / "index.html").read_text()
    assert not (tmp_path / "report.pdf").exists() and not (tmp_path / "html").exists()


def test_clips(tmp_path, shared_corpus):
    save(tmp_path, "07_cnn", text("# Step 7"))
    table = shared_corpus.labels("genre", "test")
    shares = np.random.default_rng(0).dirichlet(np.ones(4), (2, len(table)))
    save_record(tmp_path, "07_cnn", {}, {("CNN mel", "genre test"): (table["id"], shares)})
    write(tmp_path, root=str(shared_corpus.root))
    page = (tmp_path / "html" / "clips.html").read_text()
    clips = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    assert clips["classes"] == ["Blues", "Jazz", "Pop", "Rock"] and len(clips["clips"]) == 16
    right = [clip["genre"] == clip["guess"] for clip in clips["clips"]]
    assert right == sorted(right)  # mistakes first
    for clip in clips["clips"]:
        share = clip["shares"][clips["classes"].index(clip["guess"])]
        assert share == max(clip["shares"])
    truth = dict(zip(table["id"], table["genre"]))
    assert {clip["id"]: clip["genre"] for clip in clips["clips"]} == truth
    assert np.shape([clip["place"] for clip in clips["clips"]]) == (16, 2)
    assert 'href="html/clips.html"' in (tmp_path / "index.html").read_text()
    assert clips_of({}, "") is None


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
    '<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>', '<p id="data" class="bar">',
]  # fmt: skip


def assert_dead(body):
    for tag, attributes in elements(body):
        assert tag not in ("script", "style", "iframe", "svg", "form", "input", "object", "base")
        assert tag not in ("meta", "embed", "x", "maction", "mglyph")
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in ("style", "xlink:href")
            assert name != "id" or re.fullmatch("h[1-6]", tag)
            assert name != "class" or value != "bar"
            if name in ("href", "src"):
                assert re.match("https?://|#|data:(image|audio)/[a-z]+;base64,", value), value
                assert name == "href" or value.startswith("data:")


def test_payloads_in_a_notebook_are_dead_everywhere(tmp_path):
    cells = [text(f"# Evil {PAYLOADS[0]}")]
    for payload in PAYLOADS:
        assert_dead(clean(payload))
        table = TABLE.replace("0.75", payload)
        cells += [
            text(f"> **5α.** {payload}\n\n**Answer.** {payload}", "answer"),
            code(f"# {payload}", shown({"text/html": payload}), printed(payload),
                 shown({"text/html": table}, caption=payload), figure(f"{FIGURES[0]} {payload}")),
        ]  # fmt: skip
    save(tmp_path, "05_evil", *cells)
    write(tmp_path, author="#panic()$] <script>")
    for path in tmp_path.rglob("*.html"):
        assert path.read_text().count("<script") == 1  # the page's own
    page = (tmp_path / "html" / "05_evil.html").read_text()
    assert_dead(re.search(r'<main id="text">(.*)<p class="steps">', page, re.S)[1])
    assert (tmp_path / "report.pdf").is_file()


def test_harmless_html_stays():
    for html in (
        '<table><thead><tr><th scope="col">a</th></tr></thead></table>',
        '<audio controls="" src="data:audio/mpeg;base64,AAAA"></audio>',
        "<details><summary>x</summary></details>", "<sub>1</sub>", "a &lt; b &amp; c",
        '<figure class="player" data-time="0 1 0 1 0 5"><div>x</div></figure>',
        '<a href="https://a.b/c?d=1&amp;e">x</a>', '<h2 id="a">b</h2>',
        f'<img src="data:image/png;base64,{PNG}" alt="a &quot;b&quot;">',
        '<math display="block"><mfrac><mn>1</mn><mi mathvariant="normal">x</mi></mfrac></math>',
    ):  # fmt: skip
        found = clean(html, lambda target: target).replace('<div class="scroll">', "")
        assert found.replace("</table></div>", "</table>") == html
