"""Executed notebooks and records -> pages to read: one for each notebook, an index, the test clips.

Pandoc turns cells into HTML. Whatever it makes passes through `clean`, white lists of tags and
attributes: a notebook may come from somebody else. Nothing is fetched.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.util
import io
import json
import os
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jinja2
from PIL import Image

from labhelpers.metrics import Difference, verdict
from labhelpers.plots import SCRIPT
from labhelpers.records import read_run

from .clips import clips_of, data_uri
from .report import PROJECT, digest, read_notebook, save_state

TEMPLATES = Path(__file__).parent / "templates"
TITLE = "Music genre and affect from spectrograms"
READER = "ipynb+gfm_auto_identifiers+markdown_in_html_blocks+table_captions"
LIBRARIES = ("pypandoc", "nh3", "typst")  # that make pages and PDF; without them: an index
FOLDED = {"setup": "Set-up", "parameters": "Parameters", "record": "Saving the record"}  # by tag
DRAWING = re.compile(r"(plots|plt)\.|\b(show|player|\w*table|display)\(")


# --- a notebook's page ----------------------------------------------------------------------------


@dataclass
class Page:
    """A notebook as read; body and contents of its page as HTML."""

    name: str
    number: str
    title: str
    cells: list[dict]
    thumb: str = ""  # data URI of a small picture
    body: str = ""
    contents: str = ""


def read_page(path: Path) -> Page:
    """A page without body and contents. Raises ReportError."""
    cells, _ = read_notebook(path)
    titles = [re.search(r"^# +(.+)", cell["source"], re.M) for cell in cells]
    title = next((match[1] for match in titles if match), path.stem)
    page = Page(path.stem, path.stem.split("_")[0], title, cells)
    figures = sorted(pictures(cells), key=lambda figure: not figure[1].get("key"))
    if figures:
        image = Image.open(io.BytesIO(figures[0][0])).convert("RGB")
        image.thumbnail((480, 1920))
        page.thumb = data_uri("image/webp", image.save, "WEBP", quality=80)
    return page


def pictures(cells: list[dict]) -> Iterator[tuple[bytes, dict]]:
    """The PNGs that cells show, each with the metadata of its output."""
    for cell in cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                yield base64.b64decode("".join(output["data"]["image/png"])), output["metadata"]


def convert(cells: list[dict], form: str, *options: str) -> str:
    """Cells of a notebook as HTML or Typst; pandoc reads the Markdown of each by itself."""
    import pypandoc

    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}
    options = ["--wrap=none", f"--lua-filter={TEMPLATES / 'notebook.lua'}", *options]
    return pypandoc.convert_text(json.dumps(notebook), form, READER, extra_args=options)


def markdown(source: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def raw(source: str, kind: str = "text/html") -> dict:
    return {"cell_type": "raw", "metadata": {"raw_mimetype": kind}, "source": source}


def add_body(page: Page, names) -> None:
    """Set body and contents of a page. names : of the notebooks that links may lead to"""
    from .clean import clean

    def link(target: str) -> str | None:
        if target.startswith(("https://", "http://", "#")):
            return target
        name = target.partition("#")[0].removeprefix("./").removesuffix(".ipynb")
        return f"{name}.html" if name in names else None

    options = ["--mathml", "--toc", "--toc-depth=6", f"--template={TEMPLATES / 'parts.html'}"]
    made = convert(page_cells(page), "html5", *options)
    made = re.sub(r'<a href="#cb\d+-\d+"[^>]*></a>', "", made)  # of the lines of code
    contents, body = made.split("<hr>", 1)
    page.contents, page.body = clean(contents, link), clean(body, link)


def page_cells(page: Page) -> list[dict]:
    """The cells as pandoc is to read them, with outputs as cells and what stands around them."""
    cells = []
    counts: Counter = Counter()
    for cell in page.cells:
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] == "markdown":
            kind = next((tag for tag in ("answer", "summary") if tag in tags), "text")
            cells += [raw(f'<div class="{kind}">'), markdown(cell["source"]), raw("</div>")]
        elif cell["cell_type"] == "code":
            title = next((FOLDED[tag] for tag in tags if tag in FOLDED), "")
            state = "" if title or draws(cell["source"]) else " open"
            cells.append(raw(f'<details class="code"{state}><summary>{title or "Code"}</summary>'))
            cells.append({**cell, "metadata": {}, "outputs": []})
            outputs = [output_html(output, page.number, counts) for output in cell["outputs"]]
            cells.append(raw(f'</details><div class="out">{"".join(outputs)}</div>'))
    return cells


def draws(source: str) -> bool:
    """Whether the last statement of a cell shows something, so that its code can stay closed."""
    last = re.split(r"\n(?=\w)", source.strip())[-1]
    return bool(DRAWING.search(last)) and not last.startswith(("def ", "class "))


def output_html(output: dict, number: str, counts: Counter) -> str:
    """An output as HTML. counts : numbers of the notebook's captions so far"""
    data, metadata = output.get("data", {}), output.get("metadata", {})
    if metadata.get("is_caption"):  # for notebooks; here captions have numbers
        return ""
    caption, thing = metadata.get("caption", ""), ""
    if "image/png" in data:
        thing, source = "Figure", "".join(data["image/png"])
        width = metadata.get("image/png", {}).get("width", "")
        alt = html.escape(caption or "figure")
        content = f'<img src="data:image/png;base64,{source}" alt="{alt}" width="{width}">'
    elif "text/html" in data:
        content = "".join(data["text/html"])
        thing = "Table" if "<table" in content else ""  # a player has its own caption
    else:
        return printed(output)
    if not caption or not thing:
        return content
    counts[thing] += 1
    label = f"{thing} {number.lstrip('0') or '0'}.{counts[thing]}."
    caption = html.escape(caption[:1].upper() + caption[1:])
    return f"<figure>{content}<figcaption><b>{label}</b> {caption}</figcaption></figure>"


def printed(output: dict) -> str:
    """What a cell printed, or its error; a training log is folded."""
    text = output.get("text") or output.get("data", {}).get("text/plain")
    text = "".join(text or [output.get("ename", ""), ": ", output.get("evalue", "")])
    stream = output.get("name", output["output_type"])
    block = f'<pre class="{stream}">{html.escape(text.rstrip())}</pre>'
    if text.count("\n") > 3 and text.lstrip().startswith("epoch"):
        last = html.escape(" ".join(text.split("epoch")[-1].split()))
        return f"<details><summary>Training log, up to epoch {last}</summary>{block}</details>"
    return block


# --- results --------------------------------------------------------------------------------------

METRICS = {
    "genre": ["accuracy", "macro-F1"],
    "affect": ["rho mean", "rho valence", "rho energy", "rho danceability"],
}
MODELS = {  # that the tables show, of both tasks
    "networks alone": [
        "LSTM mel", "LSTM beat mel", "LSTM chroma", "LSTM fused", "CNN mel", "best LSTM",
        "CNN transfer", "CNN three heads", "mean of three CNNs",
    ],
    "baselines alone": ["SVM descriptors", "SVR descriptors"],
    "together": ["CNN + descriptors", "blend"],
    "guessing": ["majority class", "mean label"],
}  # fmt: skip


FEW = 30  # clips; from so few, intervals promise too much


def scores(results: dict) -> dict[str, dict]:
    """Task -> (kind, model) -> estimates by `METRICS`, best first. results : key -> result"""
    tables = {}
    for task, metrics in METRICS.items():
        rows = {
            (kind, model): [results[f"{model} {metric}"] for metric in metrics]
            for kind, models in MODELS.items()
            for model in models
            if f"{model} {metrics[-1]}" in results
        }
        if rows:
            tables[task] = dict(sorted(rows.items(), key=lambda row: -row[1][0].value))
    return tables


def headline(task: str, table: dict, results: dict) -> dict:
    """What to say first of a task: the best model of each kind, and whether a network leads."""
    metric = METRICS[task][0]
    best = {kind: (model, row[0]) for (kind, model), row in reversed(table.items())}
    sentence = ""
    if {"networks alone", "baselines alone"} <= set(best):
        (network, a), (baseline, b) = best["networks alone"], best["baselines alone"]
        # Where no notebook took the paired difference: all that the two intervals admit.
        apart = Difference(b.value - a.value, b.low - a.high, b.high - a.low, 0, a.seeds, a.n)
        word = verdict(results.get(f"{baseline} - {network} {metric}", apart))
        sentence = {
            "ahead": f"No network alone beats {baseline}.",
            "behind": f"The best network, {network}, beats every baseline.",
            "not distinguishable": f"Not distinguishable: {network} and {baseline}.",
        }[word]
    rows = [(kind, *best[kind]) for kind in MODELS if kind in best]
    if rows[0][2].n < FEW:
        sentence = f"{sentence} Judged by {rows[0][2].n} clips alone, this may be chance.".strip()
    name = metric.replace("rho mean", "mean Spearman ρ")
    return {"task": task, "metric": name, "rows": rows, "sentence": sentence}


# --- all pages ------------------------------------------------------------------------------------


def write_report(out: Path, state: dict) -> str:
    """Write pages, PDF and zip into `out`, unless nothing changed; returns what was made, in words.

    They are written to a folder of their own and then moved to their places, file by file: a kill
    leaves whole files. Nothing else is deleted. Raises ReportError, RunError.
    """
    if state["pages"] == fingerprint(out, state):
        return f"The report is up to date: {out / 'index.html'}"
    staging = out / ".pages"
    shutil.rmtree(staging, ignore_errors=True)  # what a killed run left
    made = write_files(staging, out, state)
    for path in sorted(staging.rglob("*.*")):
        target = out / path.relative_to(staging)
        target.parent.mkdir(exist_ok=True)
        os.replace(path, target)
    shutil.rmtree(staging)
    state["pages"] = fingerprint(out, state)
    save_state(out, state)
    return f"{made}\nReport: {out / 'index.html'}"


def fingerprint(out: Path, state: dict) -> str:
    """Of all that pages are made of, and of which files there are: one that is lost is missed."""
    paths = [*out.glob("notebooks/*.ipynb"), *out.glob("records/*.json"), *TEMPLATES.iterdir()]
    paths += [*Path(__file__).parent.glob("*.py"), *(PROJECT / "labhelpers").glob("*.*")]
    made = sorted(path.name for kind in ("html", "pdf", "zip") for path in out.rglob(f"*.{kind}"))
    contents = [(path.name, path.read_bytes()) for path in sorted(paths)]
    return digest({**state, "pages": ""}, has_libraries(), made, contents)


def has_libraries() -> bool:
    """Whether there can be more than an index."""
    return all(map(importlib.util.find_spec, LIBRARIES))


def write_files(staging: Path, out: Path, state: dict) -> str:
    """Write all files of a report into `staging`; returns what they are, in words."""
    (staging / "html").mkdir(parents=True)
    pages = [read_page(path) for path in sorted(out.glob("notebooks/[0-9]*.ipynb"))]
    runs = {path.stem: read_run(path) for path in sorted(out.glob("records/[0-9]*.json"))}
    results = {key: value for run in runs.values() for key, value in run.results.items()}
    tables = scores(results)
    context = {
        **state,
        "title": TITLE,
        "pages": {page.name: page for page in pages},
        "tables": tables,
        "metrics": METRICS,
        "headlines": [headline(task, table, results) for task, table in tables.items()],
        "notes": [state["note"]] if state["note"] else [],
        "date": max([entry.get("date", "")[:10] for entry in state["notebooks"].values()] + [""]),
        "files": {},
    }
    if has_libraries():
        context["clips"] = clips_of(runs, state["corpus"].get("root", ""))
        write_pages(staging, context)
    else:
        context["notes"].append(f"No pages, no PDF: {', '.join(LIBRARIES)} are needed for them.")
    if (out / "solution.txt").is_file():
        context["files"]["solution.txt"] = "solution.txt"
    about = f"music {state['corpus'].get('name', 'report')} {state['author']}"
    bundle = "-".join(re.findall(r"\w+", about)) + ".zip"
    context["files"][bundle] = "All of it, to hand in (zip)"
    render(staging / "index.html", "index.html", up="", **context)
    write_zip(staging / bundle, out, staging)
    return "\n".join([*context["notes"], f"Made: {', '.join(context['files'].values())}"])


def write_pages(staging: Path, context: dict) -> None:
    """Write the pages of notebooks and clips, and the short report."""
    import typst

    from .pdf import write_pdf

    pages = list(context["pages"].values())
    for before, page, after in zip([None, *pages], pages, [*pages[1:], None]):
        add_body(page, context["pages"])
        around = {"page": page, "before": before, "after": after, "up": "../"}
        render(staging / "html" / f"{page.name}.html", "page.html", **around, **context)
    if context["clips"]:
        render(staging / "html" / "clips.html", "clips.html", up="../", **context)
    try:
        count = write_pdf(staging / "report.pdf", context)
        context["files"]["report.pdf"] = f"Report (PDF, {count} pages)"
    except typst.TypstError as error:  # the pages are as good without it
        context["notes"].append(f"report.pdf could not be set: {str(error).splitlines()[0]}")


def render(path: Path, template: str, **context) -> None:
    """Write a page. The hashes in its head let these three scripts run, and no others."""
    scripts = {name: (TEMPLATES / f"{name}.js").read_text("utf-8") for name in ("page", "clips")}
    scripts["player"] = re.sub("</?script>", "", SCRIPT)
    digests = [hashlib.sha256(text.encode()).digest() for text in scripts.values()]
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    loader = jinja2.FileSystemLoader(TEMPLATES)
    page = jinja2.Environment(loader=loader, autoescape=True).get_template(template)
    text = page.render(here=path.stem, scripts=scripts, hashes=hashes, **context)
    path.write_text(text, encoding="utf-8")


def write_zip(target: Path, out: Path, staging: Path) -> None:
    """Notebooks with outputs, package, scripts and report; the same bytes for the same files."""
    own = ["LICENSE", "README.md", "pyproject.toml", "Makefile", "environment.yml"]
    own += ["labhelpers/*.*", "scripts/*.py", "scripts/templates/*"]
    ran = ["notebooks/[0-9]*.ipynb", "records/[0-9]*.json", "solution.txt"]
    parts = {PROJECT: own, out: ran, staging: ["index.html", "*.pdf", "html/*.html"]}
    with zipfile.ZipFile(target, "w") as archive:
        for folder, patterns in parts.items():
            for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
                if not path.is_symlink():  # which may lead out of the folder
                    name = f"{target.stem}/{path.relative_to(folder).as_posix()}"
                    entry = zipfile.ZipInfo(name)  # dated 1980-01-01
                    archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
