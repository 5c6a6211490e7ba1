"""Executed notebooks and records -> pages to read: one for each notebook, an index, the test clips.

Pandoc turns Markdown into HTML. Whatever comes out of a notebook then passes through `Cleaner`, a
white list of tags and attributes: a notebook may come from somebody else. Nothing is fetched.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import html
import importlib.util
import io
import os
import re
import shutil
import zipfile
from pathlib import Path

import jinja2
from PIL import Image

from labhelpers.metrics import verdict
from labhelpers.plots import SCRIPT
from labhelpers.records import RunError, read_run

from .clean import Cleaner, slug
from .clips import clips_of
from .report import (
    PROJECT,
    ReportError,
    claim,
    digest,
    read_notebook,
    remove_old,
    save_state,
)

TEMPLATES = Path(__file__).parent / "templates"
TITLE = "Music genre and affect from spectrograms"
READER = "gfm+tex_math_dollars"
RICHEST = ("image/png", "image/svg+xml", "image/jpeg", "text/html", "text/markdown", "text/plain")
DRAWING = re.compile(r"(plots|plt)\.|\b(show|player|\w*table|display)\(")  # closes a cell's code
OWN = (".html", ".pdf", ".zip")
STAGING = ".pages"  # where pages are written before they replace the old ones


def convert(texts: list[str], form: str = "html5") -> list[str]:
    """Markdown -> HTML or Typst of each text; one call of pandoc where that keeps them apart."""
    import pypandoc

    def pandoc(text):
        options = ["--mathml", "--wrap=none"]
        return pypandoc.convert_text(text, form, READER, extra_args=options)

    mark = f"mark{digest(texts)}"
    around = f"<p>{mark}</p>" if form == "html5" else mark
    parts = pandoc(f"\n\n{mark}\n\n".join(texts)).split(around)
    if len(parts) != len(texts):  # something is not closed in one of them
        parts = [pandoc(text) for text in texts]
    return [re.sub(r'<a href="#cb\d+-\d+"[^>]*></a>', "", part) for part in parts]


# --- a notebook's page ----------------------------------------------------------------------------


class Page:
    """A notebook's cells as HTML, its headings, and a small picture of its key figure."""

    def __init__(self, path: Path, names, with_pandoc=True):
        self.name, self.number = path.stem, path.stem.split("_")[0]
        self.cells, self.metadata = read_notebook(path)
        self.names = names
        self.parts: list[tuple[str, str]] = []  # (kind, text): markdown, html from outside, ours
        self.counts = {"Figure": 0, "Table": 0}
        self.body, self.headings, self.ids = "", [], set()
        titles = [re.search(r"^# +(.+)", cell["source"], re.M) for cell in self.cells]
        self.title = next((match[1] for match in titles if match), self.name)
        self.thumb = thumbnail(self.figure) if self.figure else ""
        if with_pandoc:
            for cell in self.cells:
                self.add(cell)
            self.finish()

    @property
    def figure(self) -> str:
        """The PNG that stands for the notebook, in base64: its first key figure, or its first."""
        outputs = [output for cell in self.cells for output in cell.get("outputs", [])]
        outputs = [output for output in outputs if "image/png" in output.get("data", {})]
        outputs.sort(key=lambda output: not output["metadata"].get("key"))
        return "".join(outputs[0]["data"]["image/png"]) if outputs else ""

    def add(self, cell: dict) -> None:
        tags = cell["metadata"].get("tags", [])
        kind = next((tag for tag in ("answer", "summary") if tag in tags), "text")
        if cell["cell_type"] == "markdown":
            self.parts += [("ours", f'<div class="{kind}">'), ("markdown", cell["source"])]
            self.parts += [("ours", "</div>")]
        elif cell["cell_type"] == "code":
            titles = {"setup": "Set-up", "parameters": "Parameters", "record": "Saving the record"}
            title = next((titles[tag] for tag in tags if tag in titles), "")
            closed = bool(title) or draws(cell["source"])
            fence = "`" * (3 + max(map(len, re.findall("`+", cell["source"])), default=0))
            start = f'<details class="code"{"" if closed else " open"}><summary>'
            self.parts += [("ours", f"{start}{title or 'Code'}</summary>")]
            self.parts += [("markdown", f"{fence}python\n{cell['source']}\n{fence}")]
            self.parts += [("ours", '</details><div class="out">')]
            for output in cell["outputs"]:
                self.add_output(output)
            self.parts += [("ours", "</div>")]

    def add_output(self, output: dict) -> None:
        metadata = output.get("metadata", {})
        if output["output_type"] == "stream":
            self.add_text("".join(output["text"]), output["name"])
        elif output["output_type"] == "error":
            self.add_text(f"{output['ename']}: {output['evalue']}", "stderr")
        elif not metadata.get("is_caption"):
            kind = next((kind for kind in RICHEST if kind in output["data"]), "")
            data = output["data"].get(kind, "")
            caption = metadata.get("caption", "")
            data = data if isinstance(data, str) else "".join(data)
            if kind == "text/plain":
                self.add_text(data, "stdout")
            elif kind == "text/markdown":
                self.parts.append(("markdown", data))
            elif kind:
                self.add_figure(kind, data, caption, metadata.get(kind, {}))

    def add_text(self, text: str, stream: str) -> None:
        lines = text.strip("\n").splitlines()
        block = f'<pre class="{stream}">{html.escape(text.rstrip())}</pre>'
        if len(lines) > 3 and all(line.lstrip().startswith("epoch") for line in lines):
            last = html.escape(" ".join(lines[-1].split()))
            block = f"<details><summary>Training log, at its end: {last}</summary>{block}</details>"
        self.parts.append(("html", block))

    def add_figure(self, kind: str, data: str, caption: str, about: dict) -> None:
        """An image, or HTML, with a numbered caption. A player has its own."""
        thing = "Figure"
        if kind.startswith("image"):
            if kind == "image/svg+xml":
                data = base64.b64encode(data.encode()).decode()
            alt = html.escape(about.get("alt", caption) or "figure")
            width = f' width="{about["width"]:.0f}"' if "width" in about else ""
            data = f'<img src="data:{kind};base64,{data}" alt="{alt}"{width}>'
        else:
            thing = "Table" if "<table" in data else ""
        if not caption or not thing:
            self.parts.append(("html", data))
            return
        self.counts[thing] += 1
        label = f"{thing} {self.number.lstrip('0') or '0'}.{self.counts[thing]}."
        below = f"<b>{label}</b> {html.escape(capitalised(caption))}"
        self.parts += [("ours", "<figure>"), ("html", data)]
        self.parts += [("ours", f"<figcaption>{below}</figcaption></figure>")]

    def finish(self) -> None:
        """Set body, headings and ids; all that is not ours goes through the Cleaner."""
        texts = [text for kind, text in self.parts if kind == "markdown"]
        converted = iter(convert(texts) if texts else [])
        cleaner = Cleaner(self.link)
        parts = []
        for kind, text in self.parts:
            text = next(converted) if kind == "markdown" else text
            parts.append(text if kind == "ours" else cleaner.clean(text))
        self.body, self.headings = "".join(parts), cleaner.headings
        self.title = self.headings[0][2] if self.headings else self.title
        self.ids = {name for _, name, _ in self.headings} | {"text"}

    def link(self, target: str) -> str:
        """Links lead to the web, to a heading, or to another notebook's page."""
        there, _, place = target.partition("#")
        place = f"#{slug(place)}" if place else ""
        if re.fullmatch(r"https?://[^\s\"'<>]+", target):
            return target
        name = there.removeprefix("./").removesuffix(".ipynb")
        if there.endswith(".ipynb") and name in self.names:
            return f"{name}.html{place}"
        return "" if there else place


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def draws(source: str) -> bool:
    """Whether the last statement of a cell shows something, so that its code can stay closed."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return False
    last = body[-1] if body else None
    if last is None or isinstance(last, (ast.FunctionDef, ast.ClassDef)):
        return False
    return bool(DRAWING.search(ast.unparse(last)))


def contents(headings: list) -> list:
    """Headings but for the page's title as a tree: [(id, text, children), ...]."""
    tree: list = []
    path = [(0, tree)]
    has_title = bool(headings) and headings[0][0] == 1
    for level, name, text in headings[has_title:]:
        while path[-1][0] >= level:
            path.pop()
        children: list = []
        path[-1][1].append((name, text, children))
        path.append((level, children))
    return tree


def resolve_links(pages: dict[str, Page]) -> None:
    """Cut the fragment of a link to a heading that is not there."""

    def checked(match):
        there, place = match[1], match[2]
        page = pages.get(there.removesuffix(".html")) if there else here
        return match[0] if page and place in page.ids else f'href="{there or "#top"}"'

    for here in pages.values():
        here.body = re.sub(r'href="([\w-]*(?:\.html)?)#([^"]+)"', checked, here.body)


# --- results --------------------------------------------------------------------------------------

METRICS = {
    "genre": ("accuracy", "macro-F1"),
    "affect": ("rho mean", "rho valence", "rho energy", "rho danceability"),
}
NOTEBOOKS = {"genre": ("06", "07"), "affect": ("08", "09a", "09b", "10")}
KINDS = {"network": "networks alone", "baseline": "baselines alone", "both": "together"}
BASELINE = re.compile("SVM|SVR|majority|mean label|descriptors|untrained|chance")
OTHER = re.compile(r" - |\(\d+\w?\)$|\b(validation|training|expected)\b")  # no model's own result


def kind_of(model: str) -> str:
    """network, baseline, or both where a network and another machine decide together."""
    parts = model.split(" + ")
    baselines = [part for part in parts if BASELINE.search(part)]
    untrained = "untrained" in model
    if "blend" in model or 0 < len(baselines) < len(parts) and not untrained:
        return "both"
    return "baseline" if baselines else "network"


def scores(results: dict[str, dict]) -> dict[str, dict]:
    """Task -> model -> metric -> Estimate, best model first; on test clips or held-out folds."""
    tables: dict[str, dict] = {}
    for task, metrics in METRICS.items():
        found: dict[str, dict] = {}
        for notebook, values in results.items():
            for key, value in values.items() if notebook.split("_")[0] in NOTEBOOKS[task] else ():
                metric = next((name for name in metrics if key.endswith(f" {name}")), None)
                model = key.removesuffix(f" {metric}")
                if metric and hasattr(value, "seeds") and not OTHER.search(model):
                    found.setdefault(model, {})[metric] = value
        order = [model for model in found if metrics[0] in found[model]]
        order.sort(key=lambda model: -found[model][metrics[0]].value)
        tables[task] = {model: found[model] for model in order}
    return tables


def best_of(table: dict, kind: str) -> str:
    return next((model for model in table if kind_of(model) == kind), "")


def compared(pair, metric: str, values: dict, results: dict[str, dict]) -> str:
    """The verdict on a network and a baseline: of their paired difference, if a notebook took it.

    Else they are apart where neither value lies in the other's interval.
    """
    for found in results.values():
        for a, b in (pair, pair[::-1]):
            difference = found.get(f"{a} - {b} {metric}")
            if difference:
                word = verdict(difference)
                swapped = {"ahead": "behind", "behind": "ahead"}
                return word if (a, b) == pair else swapped.get(word, word)
    network, baseline = values["network"], values["baseline"]
    within = network.low <= baseline.value <= network.high
    if within or baseline.low <= network.value <= baseline.high:
        return "not distinguishable"
    return "ahead" if network.value > baseline.value else "behind"


def headline(task: str, table: dict, results: dict[str, dict]) -> dict:
    """What to say first of a task: the best network, baseline and blend, and which is ahead."""
    metric = METRICS[task][0]
    best = {kind: best_of(table, kind) for kind in KINDS}
    values = {kind: table[model][metric] for kind, model in best.items() if model}
    baselines = [model for model in table if kind_of(model) == "baseline"]
    sentence = ""
    if "network" in values and "baseline" in values:
        pair = best["network"], best["baseline"]
        sentence = {
            "ahead": "The best network is ahead of the best baseline",
            "behind": "No network beats the best baseline",
            "not distinguishable": "The best network and the best baseline cannot be told apart",
        }[compared(pair, metric, values, results)]
        numbers = [f"{best[kind]} {values[kind].value:.2f}" for kind in ("network", "baseline")]
        sentence += f": {', '.join(numbers)}."
    rows = [{"label": KINDS[kind], "model": best[kind], "score": values[kind]} for kind in values]
    if baselines:
        rows.append(
            {"label": "guessing", "model": baselines[-1], "score": table[baselines[-1]][metric]}
        )
    names = {"accuracy": "accuracy", "rho mean": "mean Spearman ρ"}
    return {"task": task, "metric": names[metric], "rows": rows, "sentence": sentence}


# --- all pages ------------------------------------------------------------------------------------


def write_report(out: Path, state: dict) -> str:
    """Write pages, PDF and zip into `out`, unless nothing changed; returns what was made, in words.

    They are written to a folder beside the old ones and then moved over them, file by file: a kill
    leaves whole files.
    """
    executed = {path.stem: path for path in sorted((out / "notebooks").glob("[0-9]*.ipynb"))}
    records = {path.stem: path for path in sorted((out / "records").glob("[0-9]*.json"))}
    inputs = [*executed.values(), *records.values(), *TEMPLATES.iterdir()]
    inputs += [*Path(__file__).parent.glob("*.py"), *(PROJECT / "labhelpers").glob("*.py")]
    about = {**state, "files": [], "pages": ""}
    key = digest(about, [(path.name, path.read_bytes()) for path in inputs if path.is_file()])
    index = out / "index.html"
    old = [name for name in state["files"] if not name.startswith("notebooks/")]
    staging = out / STAGING
    shutil.rmtree(staging, ignore_errors=True)  # what a killed run left
    if state["pages"] == key and old and all((out / name).is_file() for name in old):
        return f"The report is up to date: {index}"
    try:
        made = write_files(staging, out, executed, read_records(records), state)
        new = [path.relative_to(staging).as_posix() for path in staging.rglob("*.*")]
        claim(out, state, new)
        for name in sorted(new):
            (out / name).parent.mkdir(exist_ok=True)
            os.replace(staging / name, out / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    remove_old(out, state, set(old) - set(new))
    state["pages"] = key
    save_state(out, state)
    return f"{made}\nReport: {index}"


def write_files(staging: Path, out: Path, executed: dict, runs: dict, state: dict) -> str:
    """Write all files of a report into `staging`; returns what they are, in words.

    executed : name -> path of a notebook; runs : name -> its record
    """
    (staging / "html").mkdir(parents=True)
    notes = [state["note"]] if state["note"] else []
    with_pandoc = bool(importlib.util.find_spec("pypandoc"))
    if not with_pandoc:
        notes.append("There are no pages and no PDF: pandoc is missing (pypandoc_binary, typst).")
    pages = {}
    for name, path in executed.items():
        try:
            pages[name] = Page(path, list(executed), with_pandoc)
        except ReportError as error:
            notes.append(f"{error}; it is left out.")
    resolve_links(pages)
    results = {name: run.results for name, run in runs.items()}
    tables = scores(results)
    bundle = bundle_name(state)
    context = {
        **state,
        "title": TITLE,
        "pages": pages,
        "tables": tables,
        "metrics": METRICS,
        "kind_of": kind_of,
        "headlines": [headline(task, table, results) for task, table in tables.items() if table],
        "notes": notes,
        "clips": clips_of(runs, state["corpus"].get("root", "")) if with_pandoc else None,
        "ran": state["notebooks"],
        "date": max((entry.get("date", "") for entry in state["notebooks"].values()), default=""),
        "versions": next((run.versions for run in runs.values()), {}),
        "files": {},
    }
    if with_pandoc:
        write_pages(staging, pages, context)
    if with_pandoc and importlib.util.find_spec("typst"):
        import typst

        from .pdf import write_pdf

        try:
            count = write_pdf(staging / "report.pdf", pages, tables, context)
            context["files"]["report.pdf"] = f"Report (PDF, {count} pages)"
        except typst.TypstError as error:  # the pages are as good without it
            notes.append(f"report.pdf could not be set: {str(error).splitlines()[0]}")
    if (out / "solution.txt").is_file():
        context["files"]["solution.txt"] = "solution.txt"
    made = [*context["files"].values()]
    context["files"][bundle] = "All of it, to hand in (zip)"
    render(staging / "index.html", "index.html", here="index", up="", **context)
    write_zip(staging / bundle, out, staging)
    if context["clips"]:
        made.append(f"{len(context['clips']['clips'])} test clips to see and hear")
    made.append(f"{bundle} ({(staging / bundle).stat().st_size / 1e6:.0f} MB)")
    return "\n".join([*notes, f"Made: {', '.join(made)}"])


def read_records(paths: dict[str, Path]) -> dict:
    """Notebook -> its run; one that cannot be read is told and left out."""
    runs = {}
    for name, path in paths.items():
        try:
            runs[name] = read_run(path)
        except RunError as error:
            print(error)
    return runs


def render(path: Path, template: str, **context) -> None:
    """Write one page. The hashes in its head let these three scripts run, and no others."""
    scripts = {name: (TEMPLATES / f"{name}.js").read_text("utf-8") for name in ("page", "clips")}
    scripts["player"] = re.sub("</?script>", "", SCRIPT)
    digests = [hashlib.sha256(text.encode()).digest() for text in scripts.values()]
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True)
    text = environment.get_template(template).render(scripts=scripts, hashes=hashes, **context)
    path.write_text(text, encoding="utf-8")


def write_pages(folder: Path, pages: dict[str, Page], context: dict) -> None:
    names = list(pages)
    for place, (name, page) in enumerate(pages.items()):
        entry = context["ran"].get(name, {})
        around = {
            "page": page,
            "contents": contents(page.headings),
            "before": names[place - 1] if place else "",
            "after": (names + [""])[place + 1],
            "problem": entry.get("problem", ""),
        }
        context = {**context, "here": name, "up": "../", "entry": entry}
        render(folder / "html" / f"{name}.html", "page.html", **{**context, **around})
    if context["clips"]:
        around = {"here": "clips", "up": "../"}
        render(folder / "html" / "clips.html", "clips.html", **{**context, **around})


def thumbnail(picture: str, width: int = 480) -> str:
    """A PNG in base64 as a small data URI."""
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    image.thumbnail((width, 4 * width))
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"


# --- the zip --------------------------------------------------------------------------------------


def bundle_name(state: dict) -> str:
    parts = ["music", state["corpus"].get("name", "report"), state["author"]]
    return "-".join(re.findall(r"\w+", " ".join(parts))) + ".zip"


def write_zip(target: Path, out: Path, staging: Path) -> None:
    """Notebooks with outputs, package, scripts and report; the same bytes for the same files."""
    files = {}
    for pattern in ("LICENSE", "README.md", "pyproject.toml", "Makefile", "environment.yml"):
        files |= {pattern: PROJECT / pattern}
    for pattern in ("labhelpers/*.py", "scripts/*.py", "scripts/templates/*"):
        files |= {path.relative_to(PROJECT).as_posix(): path for path in PROJECT.glob(pattern)}
    for pattern in ("notebooks/[0-9]*.ipynb", "records/[0-9]*.json", "solution.txt"):
        files |= {path.relative_to(out).as_posix(): path for path in out.glob(pattern)}
    for path in [staging / "index.html", *staging.glob("*.pdf"), *staging.glob("html/*.html")]:
        files[path.relative_to(staging).as_posix()] = path
    with zipfile.ZipFile(target, "w") as archive:
        for name, path in sorted(files.items()):
            if path.is_file() and not path.is_symlink():
                entry = zipfile.ZipInfo(f"{target.stem}/{name}")  # dated 1980-01-01
                archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
