"""What a run of the series leaves to read and to hand in.

A page a notebook, an index, an answer sheet, a short and a full PDF, and a zip of them all. Pandoc
reads the notebooks; `templates/notebook.lua` makes what it read into a page or into a chapter of a
PDF, which typst sets. Nothing here needs the corpus, except for the pictures and sounds of the
test clips.
"""

from __future__ import annotations

import base64
import html
import importlib.util
import io
import json
import logging
import re
import shutil
import tempfile
import zipfile
from copy import deepcopy
from pathlib import Path

import jinja2
import nbformat
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from ..files import atomic, write_text
from ..plots import plot_forest, plot_history, use_style
from ..training import best_epoch
from . import results
from .clips import clip_page

log = logging.getLogger("labhelpers")
PROJECT = Path(__file__).parents[2]
TEMPLATES = Path(__file__).parent / "templates"
READER = "ipynb+markdown_in_html_blocks+gfm_auto_identifiers"
RICHEST = (
    "text/markdown",
    "image/svg+xml",
    "image/png",
    "image/jpeg",
    "text/html",
    "text/latex",
    "text/plain",
)
LARGE = 150_000  # bytes of a PNG above which a PDF takes it as JPEG
PAGES = 6  # of the short report at most: its figures shrink until it fits
TITLE = "Music genre and affect from spectrograms"


def write_report(out: Path, series: dict[str, Path], state: dict, *, code: bool = False) -> None:
    """Write pages, PDFs and zip into `out` from the executed notebooks and the records there.

    series : name -> source of every notebook; state : `run.json`, see `load_state`
    code : keep the notebooks' code in the full PDF
    Without pandoc and typst (see `can_set`) there are no pages and no PDFs: the index links to the
    notebooks themselves.
    """
    context = _context(out, series, state)
    books, titles, clips = context["books"], context["titles"], context["clips"]
    shutil.rmtree(out / "html", ignore_errors=True)
    for old in out.glob("*.pdf"):
        old.unlink()
    if can_set():
        _write_pages(out, books, titles, context)
        _write_pdfs(out, books, titles, context, code)
    context["pdfs"] = {path.name for path in out.glob("*.pdf")}
    if clips:
        write_text(out / "html" / "clips.html", _render("clips.html", **context))
    write_text(out / "index.html", _render("index.html", **context))
    write_zip(out, context["corpus"]["name"])


def lone_index(out: Path, series: dict[str, Path], state: dict) -> str:
    """index.html for a place where of the report only the short PDF lies beside it."""
    context = _context(out, series, state)
    context |= {"books": {}, "clips": None, "pdf": False, "solution": False}
    return _render("index.html", **context, pdfs={"report.pdf"}, alone=True)


def _context(out: Path, series: dict[str, Path], state: dict) -> dict:
    """What the templates may show."""
    records, books = results.read_records(out), read_books(out)
    corpus = _corpus(state, records)
    titles = {name: _title(books.get(name) or _read(path), name) for name, path in series.items()}
    titles |= {name: _title(book, name) for name, book in books.items()}
    clips = clip_page(records, corpus["root"])
    return {
        "title": TITLE,
        "corpus": corpus,
        "state": state,
        "records": records,
        "pdf": can_set(),
        "facts": _facts(state, records),
        "main": results.main_tables(records),
        "headlines": results.headlines(records),
        "tables": results.tables(records),
        "titles": titles,
        "books": books,
        "chapters": {**books, "answers": answer_sheet(books, titles)},
        "clips": clips,
        "ran": state["notebooks"],
        "forests": [forest(table) for table in results.tables(records)],
        "curves": _curves(records),
        "solution": (out / "solution.txt").is_file(),
    }


def can_set() -> bool:
    """Whether pandoc and typst, which set pages and PDFs, are there; Kaggle's image lacks them."""
    return all(importlib.util.find_spec(name) for name in ("pypandoc", "typst"))


def duration(seconds: float) -> str:
    """As in "42 s" or "3 min 20 s"."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    return "{} min {} s".format(*divmod(round(seconds), 60))


def _render(template: str, **context) -> str:
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "duration": duration,
        "measure": results.measure,
        "meaning": results.MEANING.get,
        "b64": lambda data: base64.b64encode(data).decode(),
    }
    return environment.get_template(template).render(**context)


# --- what there is --------------------------------------------------------------------------------


def load_state(out: Path) -> dict:
    """`run.json`, or what is right in it: damage only means that notebooks run again."""
    try:
        state = json.loads((out / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        state = {}
    state = state if isinstance(state, dict) else {}
    listed = state.get("notebooks")
    listed = listed if isinstance(listed, dict) else {}
    wanted = {"state", "date", "device"}
    state["notebooks"] = {
        name: entry
        for name, entry in listed.items()
        if isinstance(entry, dict) and wanted <= set(entry)
    }
    return state


def read_books(out: Path) -> dict:
    """Name -> executed notebook, prepared for pandoc; one that cannot be read is told."""
    books = {}
    for path in sorted((out / "notebooks").glob("[0-9]*_*.ipynb")):
        try:
            books[path.stem] = prepared(nbformat.read(path, 4), path.stem)
        except Exception as error:  # whatever nbformat finds in half a file
            log.warning("%s: not an executed notebook (%s); run it again", path, error)
    return books


def _read(path: Path):
    return nbformat.read(path, 4)


def _title(book, name: str) -> str:
    titles = [re.search(r"^# *(.+)", cell.source, re.M) for cell in book.cells]
    return next((found[1] for found in titles if found), name)


def _corpus(state: dict, records: dict) -> dict:
    """name, sample, counts, and the root where it is at hand."""
    told = state.get("corpus", {})
    for record in records.values():
        told = {**record.corpus, **told}
    return {"name": "unknown", "sample": False, "counts": [], "root": "", **told}


def _facts(state: dict, records: dict) -> dict[str, str]:
    """What ran on what, over all notebooks."""
    ran = state["notebooks"].values()
    versions, seeds = {}, set()
    for record in records.values():
        versions |= record.versions
        seeds |= {str(record.params[key]) for key in ("SEED", "SEEDS") if key in record.params}
    facts = {
        "Finished": max((entry["date"] for entry in ran), default=""),
        "Time": duration(sum(entry.get("seconds", 0) for entry in ran)),
        "Device": ", ".join(sorted({entry["device"] for entry in ran})),
        "Seed": ", ".join(sorted(seeds)),
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    return {key: value for key, value in facts.items() if value}


# --- a notebook, made ready for pandoc ------------------------------------------------------------


def prepared(book, name: str):
    """A copy in which each output is in its richest form and knows its caption and number.

    The cells before the first section are one ("setup"), the one that writes the record is gone.
    """
    book = deepcopy(book)
    number = name.split("_")[0].lstrip("0") or "0"
    counts = {"Figure": 0, "Table": 0}
    cells: list = []
    for cell in book.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.NotebookNode(tags=tags)
        if cell.cell_type == "markdown" or "record" not in tags:
            cells.append(cell)
        if cell.cell_type == "code":
            cell.outputs = [
                _rich(output, number, counts)
                for output in cell.outputs
                if not output.get("metadata", {}).get("is_caption")
            ]
    book.cells = _folded(cells)
    return book


def _folded(cells: list) -> list:
    """Set-up, parameters and imports as one cell; later ones up to one that shows something."""
    folded: list = []
    for cell in cells:
        last = folded[-1] if folded else None
        if last is None or cell.cell_type == "markdown" or last.cell_type == "markdown":
            folded.append(cell)
        elif "setup" in last.metadata.tags or not last.outputs:
            last.source += f"\n\n{cell.source}"
            last.outputs += cell.outputs
        else:
            folded.append(cell)
    return folded


def _rich(output, number: str, counts: dict):
    """An output with one form of its data, the caption where pandoc's reader keeps it."""
    if "data" not in output:
        return output
    kind = next((kind for kind in RICHEST if kind in output.data), None)
    data, metadata = output.data.get(kind, ""), output.metadata
    caption = metadata.get("caption")
    key = bool(metadata.get("key"))
    about = dict(metadata.get(kind) or {})
    if caption:
        thing = "Figure" if kind.startswith("image") else "Table"
        counts[thing] += 1
        label = f"{thing} {number}.{counts[thing]}."
        caption = caption[:1].upper() + caption[1:]
        if thing == "Figure":
            about["caption"] = f"**{label}** {caption}"
        else:
            caption = f"<caption><strong>{label}</strong> {html.escape(caption)}</caption>"
            data = re.sub(r"<table[^>]*>", lambda found: found[0] + caption, data, count=1)
    about.setdefault("alt", metadata.get("alt", "figure"))
    output.data = {kind: data} if kind else {}
    output.metadata = nbformat.NotebookNode({kind or "": about, "key": key})
    return output


def answer_sheet(books: dict, titles: dict):
    """Each question of the assignment with the first paragraph of its answer, as a notebook."""
    v4 = nbformat.v4
    title = v4.new_markdown_cell("# Questions and answers", id="title")
    sheet = v4.new_notebook(cells=[title])
    for name, book in books.items():
        question, found = "", []
        for cell in book.cells:
            if cell.cell_type == "markdown" and "> **Question" in cell.source:
                question = cell.source[cell.source.index("> **Question") :]
                question = re.split(r"\n(?!>)", question)[0]
            if question and "answer" in cell.metadata.get("tags", []):
                answer = cell.source.split("\n\n")[0]
                found.append(f"{question}\n\n{answer} [In its place]({name}.ipynb#{cell.id})")
                question = ""
        if found:
            text = "\n\n".join([f"## [{titles[name]}]({name}.ipynb)", *found])
            sheet.cells.append(v4.new_markdown_cell(text, id=name))
    return sheet


def summary_of(book):
    """What the short report says of a notebook: title, summary cells and key figures."""
    v4 = nbformat.v4
    title = next((cell.source for cell in book.cells if cell.cell_type == "markdown"), "")
    summaries = [deepcopy(cell) for cell in book.cells if "summary" in cell.metadata.tags]
    if summaries:  # else what stands below the title has to do
        title = title.split("\n\n")[0]
    for cell in summaries:
        # Neither its heading, "In short" (all of this is), nor code.
        heading = r"^#+ .*\n+" if cell.cell_type == "markdown" else r"(?s).*"
        cell.source = re.sub(heading, "", cell.source, count=1)
    figures = []
    for cell in book.cells:
        outputs = [out for out in cell.get("outputs", []) if out.get("metadata", {}).get("key")]
        if outputs and cell not in summaries:
            figures.append(v4.new_code_cell("", outputs=outputs))
    return v4.new_notebook(cells=[v4.new_markdown_cell(title), *summaries, *figures])


# --- pages ----------------------------------------------------------------------------------------


def convert(book, name: str, names, form: str, folder: Path, **options) -> str:
    """A prepared notebook as "html5" (contents and body, apart) or "typst"; pictures to `folder`.

    names : the notebooks that links may lead to; options : metadata for notebook.lua
    """
    import pypandoc

    pages = {}
    for other in names:
        number = other.split("_")[0]
        greek = number.replace("a", "α").replace("b", "β")
        for key in (number, number.lstrip("0") or "0", greek, greek.lstrip("0") or "0"):
            pages[key] = other
    about = folder / "about.json"
    about.write_text(json.dumps({"notebook": name, "pages": pages, **options}), encoding="utf-8")
    arguments = [
        f"--lua-filter={TEMPLATES / 'notebook.lua'}",
        f"--metadata-file={about}",
        "--wrap=none",
    ]
    if form == "typst":
        arguments += [f"--extract-media={folder / 'media'}"]
    else:
        template = TEMPLATES / "body.html"
        arguments += ["--mathml", "--toc", "--toc-depth=3", "--standalone"]
        arguments += [f"--template={template}"]
    text = nbformat.writes(book)
    return pypandoc.convert_text(text, form, READER, extra_args=arguments, cworkdir=folder)


def _write_pages(out: Path, books: dict, titles: dict, context: dict) -> None:
    titles = {**titles, "answers": "Questions and answers"}
    chapters = context["chapters"]
    names = list(chapters)
    for place, (name, book) in enumerate(chapters.items()):
        with tempfile.TemporaryDirectory() as folder:
            both = convert(book, name, books, "html5", Path(folder))
        contents, body = both.split("<!--body-->")
        around = {
            "name": name,
            "contents": contents,
            "body": body,
            "before": names[place - 1] if place else "",
            "after": (names + [""] * 2)[place + 1],
        }
        page = _render("page.html", **{**context, "titles": titles, **around})
        write_text(out / "html" / f"{name}.html", page)


# --- PDFs and zip ---------------------------------------------------------------------------------


def _write_pdfs(out: Path, books: dict, titles: dict, context: dict, code: bool) -> None:
    """report.pdf, which is short, and appendix.pdf, which has everything."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        full = [_results_chapter(folder, context, short=False)]
        for name, book in context["chapters"].items():
            full.append(convert(book, name, books, "typst", folder, code=code))
        _compile(out / "appendix.pdf", full, folder, context, short=False)
        short = [_results_chapter(folder, context, short=True)]
        for name, book in books.items():
            short.append(convert(summary_of(book), name, books, "typst", folder))
        for scale in (0.75, 0.6, 0.45, 0.35, 0.25):
            pages = _compile(out / "report.pdf", short, folder, context, short=True, scale=scale)
            if pages <= PAGES:
                break


def _results_chapter(folder: Path, context: dict, short: bool) -> str:
    import pypandoc

    for i, forest in enumerate(context["forests"]):
        (folder / f"forest{i}.svg").write_bytes(forest)
    text = _render("results_pdf.html", short=short, **context)
    arguments = [f"--lua-filter={TEMPLATES / 'notebook.lua'}", "--wrap=none"]
    return pypandoc.convert_text(text, "typst", "html", extra_args=arguments)


def _compile(target: Path, chapters: list[str], folder: Path, context: dict, short, scale=1) -> int:
    """Set chapters as a PDF, figures by `scale` smaller; returns its number of pages."""
    import typst

    body = "\n\n".join(chapters).replace("align(center)[#table(", "align(left)[#table(")
    for name, sign in (("dot", "⊙"), ("plus", "⊕"), ("times", "⊗")):
        body = body.replace(f"{name}.circle", sign)  # pandoc's name for it is not every typst's
    known = set(re.findall(r"^<([^>\s]+)>$|\] <([^>\s]+)>$", body, re.M))
    known = {label for pair in known for label in pair}
    body = re.sub(  # a link that leads nowhere would be an error
        r"#link\(<([^>]+)>\)\[", lambda m: m[0] if m[1] in known else "#[", body
    )
    for picture in (folder / "media").glob("*.png"):
        if picture.stat().st_size > LARGE:  # no difference to see in print
            Image.open(picture).convert("RGB").save(picture.with_suffix(".jpg"), quality=85)
            picture.write_bytes(b"")
    for picture in (folder / "media").glob("*.jpg"):
        body = body.replace(f"{picture.stem}.png", picture.name)
    state, corpus = context["state"], context["corpus"]
    about = {
        "title": TITLE,
        "short": short,
        "scale": scale,
        "corpus": corpus["name"],
        "sample": corpus["sample"],
        "author": state.get("author", ""),
        "course": state.get("course", ""),
        "date": context["facts"].get("Finished", ""),
        "headlines": context["headlines"],
    }
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")
    source = folder / "report.typ"
    source.write_text((TEMPLATES / "report.typ").read_text("utf-8") + body, encoding="utf-8")
    try:
        pdf = typst.compile(str(source), root=str(folder))
    except typst.TypstError as error:  # the other pages are as good without it
        log.warning("%s could not be set: %s", target, error)
        target.unlink(missing_ok=True)
        return 0
    with atomic(target) as partial:
        partial.write_bytes(pdf)
    counted = typst.query(str(source), "<pages>", field="value", one=True, root=str(folder))
    return int(json.loads(counted))


def write_zip(out: Path, name: str) -> Path:
    """deliverable.zip: a checkout with the report, in one folder; same bytes for same files."""
    top = f"music-{name}"
    files = {}
    patterns = (
        "*.html",
        "*.pdf",
        "solution.txt",
        "html/*.html",
        "notebooks/*.ipynb",
        "records/*.json",
    )
    for pattern in patterns:
        files |= {path.relative_to(out).as_posix(): path for path in out.glob(pattern)}
    code = [*PROJECT.glob("labhelpers/**/*.*"), *PROJECT.glob("tools/*.py")]
    readme = PROJECT / "README.md"
    if readme.is_file():
        names = ("pyproject.toml", "constraints.txt", "environment.yml", "Makefile", "conftest.py")
        code += [readme, *(PROJECT / name for name in names), *PROJECT.glob("tests/*.py")]
        links = re.findall(r"\]\((?!https?:)([^)#\s]+)", readme.read_text(encoding="utf-8"))
        code += [PROJECT / link for link in links]
    for path in code:
        if path.is_file() and path.suffix != ".pyc":
            files.setdefault(path.relative_to(PROJECT).as_posix(), path)
    target = out / "deliverable.zip"
    with atomic(target) as partial, zipfile.ZipFile(partial, "w") as archive:
        for place, path in sorted(files.items()):
            entry = zipfile.ZipInfo(f"{top}/{place}")  # dated 1980-01-01
            content = path.read_bytes()
            if place == "index.html":  # in the zip, there is none to link to
                content = content.replace(b'<a href="deliverable.zip">All of it (zip)</a>', b"")
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return target


# --- figures --------------------------------------------------------------------------------------


def forest(table: results.Table) -> bytes:
    """The headline metric of a table's models with their intervals, as SVG."""
    cells = [(row.label, row.cells.get(table.headline)) for row in table.rows]
    frame = pd.DataFrame([{"label": label, **cell} for label, cell in cells if cell])
    ax = _canvas(7.0, 0.9 + 0.28 * len(frame))
    label = f"{results.measure(table.headline)}, 95 % interval"
    return _svg(plot_forest(frame, ax, xlabel=label))


def _curves(records: dict) -> list[dict]:
    """name and SVG of each training that was validated."""
    curves = []
    for name, record in records.items():
        for model, epochs in record.histories.items():
            if epochs and "val_loss" in epochs[0]:
                title = f"{name.split('_')[0]} · {model}"
                best = best_epoch(epochs, len(epochs))
                ax = plot_history(epochs, _canvas(4.8, 3.2), title=title, best_epoch=best)
                curves.append({"title": title, "svg": _svg(ax)})
    return curves


def _canvas(width: float, height: float):
    use_style()
    return Figure(figsize=(width, height), layout="constrained").subplots()


def _svg(ax) -> bytes:
    """A figure as SVG, the same for the same content."""
    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": "labhelpers"}):
        ax.figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()
