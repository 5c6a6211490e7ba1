"""What a run of the series leaves to read: a page a notebook, one index, a PDF, and a zip of them all.

Pandoc (in pypandoc_binary) turns prose into HTML with formulas as MathML, so that pages need no network, and the same
HTML into the source of the PDF, which typst sets. The look is in `templates/`.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
import tempfile
import zipfile
from pathlib import Path

import jinja2
import nbformat
import pandas as pd
from PIL import Image

from ..corpora.layout import AFFECT, Corpus
from ..files import write_text
from .run import can_set, duration

PACKAGE = Path(__file__).parent
TEMPLATES = PACKAGE / "templates"
RICHEST = ("text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/html", "text/latex", "text/plain")
LOWER_IS_BETTER = ("mae", "mse", "rmse", "loss")
ENDS = 5  # lines that the PDF keeps of each end of a long printed output
LARGE = 200_000  # bytes of a PNG above which the PDF takes it as JPEG
HEADLINE = ("macro_f1", "accuracy", "mean_spearman", "spearman")  # a task is judged by the first it has
# A model without a network in it; "SVR descriptors + CNN multitask" has one.
BASELINE = re.compile(r"^(?!.*(cnn|lstm|embedding)).*(majority|baseline|\bsv[mr]\b|mean (value|of)|constant)", re.I)


def write_report(series: dict[str, Path], corpus: Corpus, out: Path, state: dict, *, code: bool = False) -> None:
    """Write html/, index.html, report.pdf and deliverable.zip into `out` from the executed notebooks and records there.

    series : name -> source of every notebook; state : name -> {state, seconds, date} of those that ran
    code : keep the notebooks' code in the PDF
    Without pandoc and typst (see `can_set`) there are no pages and no PDF: the index links to the notebooks themselves.
    """
    sources = {name: out / "notebooks" / f"{name}.ipynb" for name in series}
    executed = {name: nbformat.read(path, 4) for name, path in sources.items() if path.is_file()}
    records = {name: out / "records" / f"{name}.json" for name in series}
    records = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in records.items() if path.is_file()}
    context = {
        "corpus": corpus,
        "counts": corpus.describe().to_dict("records"),
        "facts": _facts(state, records),
        "tasks": tasks(records),
        "curves": _curves(records),
        "pdf": can_set(),
        "notebooks": [_entry(name, path, executed, state) for name, path in series.items()],
    }
    (out / "html").mkdir(exist_ok=True)
    bodies = {name: page_body(name, nb) for name, nb in executed.items()} if can_set() else {}
    for entry in context["notebooks"]:
        if body := bodies.get(entry["name"]):
            page = _render("page.html", entry=entry, body=_relink(body, "html"), pages=list(bodies), **context)
            write_text(out / "html" / f"{entry['name']}.html", page)
    write_text(out / "index.html", _render("index.html", **context))
    if can_set():
        write_pdf(out / "report.pdf", bodies, context, code=code)
    write_zip(out)


def _render(template: str, **context) -> str:
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"duration": duration, "measure": measure}
    return environment.get_template(template).render(**context)


def measure(metric: str) -> str:
    """A metric as readers know it; for affect, Spearman's rho of each axis and their mean."""
    names = {"macro_f1": "macro-F1", "mean_spearman": "mean ρ", **{axis: f"ρ {axis}" for axis in AFFECT}}
    return names.get(metric, metric.replace("_", " "))


# --- a notebook -> HTML -----------------------------------------------------------------------------------------------


def page_body(name: str, nb) -> str:
    """The notebook's cells and outputs as HTML, ids beginning with its name; code in closed `<details>`."""
    import pypandoc  # late, like typst below: an index can do without

    text, outputs, heading = [], {}, ""
    for number, cell in enumerate(nb.cells):
        if cell.cell_type == "markdown":
            text.append(cell.source)
            heading = ([heading] + re.findall(r"^#+ *(.+)", cell.source, re.M))[-1]
        elif cell.cell_type == "code":
            kind = "Parameters" if "parameters" in str(cell.metadata.get("tags")) else "Code"
            code = "{0}python\n{1}\n{0}".format("`" * 12, cell.source)
            text += [f'<details class="code"><summary>{kind}</summary>', code, "</details>"]
            for place, output in enumerate(cell.outputs):
                kind, content = _output(output, heading)
                mark = f"<!--output {number}.{place}-->"  # pandoc passes comments on: outputs need not go through it
                text.append(content if kind == "markdown" else mark)
                outputs[mark] = content
    body = pypandoc.convert_text(
        "\n\n".join(text),
        "html5",
        format="gfm+tex_math_dollars",
        extra_args=["--mathml", "--wrap=none", f"--id-prefix={name}-"],
    )
    return re.sub(r"<!--output [\d.]+-->", lambda mark: outputs[mark[0]], body)


def _output(output, heading: str) -> tuple[str, str]:
    """("markdown" or "html", content) of the richest form of one output."""
    if output.output_type == "stream":
        return "html", f'<pre class="{output.name}">{_plain(output.text)}</pre>'
    if output.output_type == "error":
        return "html", f'<pre class="stderr">{_plain(chr(10).join(output.traceback))}</pre>'
    kind = next((kind for kind in RICHEST if kind in output.data), None)
    data = output.data.get(kind, "")
    if kind in ("text/markdown", "text/latex"):
        return "markdown", data
    if kind == "text/html":
        return "html", f'<div class="table">{_align(re.sub("<style scoped>.*?</style>", "", data, flags=re.S))}</div>'
    if kind is None or kind == "text/plain":
        return "html", f"<pre>{_plain(data)}</pre>" if data else ""
    about = output.metadata.get(kind, {})
    alt = about.get("alt") or output.metadata.get("alt") or f"Figure to “{heading}”"
    width = f' width="{about["width"]}"' if "width" in about else ""
    if kind == "image/svg+xml":
        data = base64.b64encode(data.encode()).decode()
    return "html", f'<p><img src="data:{kind};base64,{data.strip()}" alt="{html.escape(alt)}"{width}></p>'


def _align(table: str) -> str:
    """A pandas table with its columns to the right, as in Jupyter, said in each cell so that the PDF knows too."""
    head, found, body = table.partition("</thead>")
    if not found:
        return table
    right = 'style="text-align: right">'
    return head.replace("<th>", f"<th {right}") + found + body.replace("<td>", f"<td {right}")


def _plain(text: str) -> str:
    """Text as HTML, without a terminal's colour codes."""
    return html.escape(re.sub(r"\x1b\[[\d;]*[A-Za-z]", "", text))


def _relink(body: str, form: str) -> str:
    """Links to notebooks lead to their pages (form "html") or to their places in the PDF (form "pdf")."""

    def target(match):
        name, anchor = match[1], match[2]
        within = f"{name}-{anchor}" if anchor else name
        return f'href="#{within}"' if form == "pdf" else f'href="{name}.html{"#" + within if anchor else ""}"'

    return re.sub(r'href="(\w+)\.ipynb(?:#([^"]*))?"', target, body)


# --- records -> tables and figures ------------------------------------------------------------------------------------


def _facts(state: dict, records: dict) -> dict[str, str]:
    """What ran on what, over all notebooks."""
    seeds = {str(record["params"]["SEED"]) for record in records.values() if "SEED" in record["params"]}
    versions = {key: value for record in records.values() for key, value in record["versions"].items()}
    facts = {
        "Finished": max((entry["date"] for entry in state.values()), default="never"),
        "Time": duration(sum(entry.get("seconds", 0) for entry in state.values())),
        "Device": ", ".join(sorted({entry["device"] for entry in state.values()})),
        "Seed": ", ".join(sorted(seeds)),
        "Versions": ", ".join(f"{key} {value}" for key, value in versions.items()),
    }
    return {key: value for key, value in facts.items() if value}


def tasks(records: dict) -> list[dict]:
    """One dict a task and set: name, metrics, rows with the best marked, headline metric, best network, forest plot."""
    found = {}
    for record in records.values():
        for row in record["results"]:  # a later notebook's word on the same result counts
            if row["task"] in AFFECT and row["metric"] == "spearman":  # the axes side by side, with their mean
                row = row | {"task": "affect", "metric": row["task"]}
            found[row["task"], row["model"], row["input"], row["set"], row["metric"]] = row
    table = pd.DataFrame(
        list(found.values()), columns=["model", "task", "input", "set", "metric", "value", "low", "high", "n"]
    )
    return [_task(str(name), str(where), part) for (name, where), part in table.groupby(["task", "set"], sort=False)]


def _task(name: str, where: str, table: pd.DataFrame) -> dict:
    metrics = list(table["metric"].unique())
    for metric, part in table.groupby("metric"):
        best = part["value"].min() if metric.lower() in LOWER_IS_BETTER else part["value"].max()
        table.loc[part.index, "best"] = (part["value"] == best) & (len(part) > 1)
    rows = []
    for (model, data), part in table.groupby(["model", "input"], sort=False):
        cells = {row.metric: row for row in part.itertuples()}
        data = "" if data in ("none", "-") or data in model else data  # most names of models say it
        baseline = bool(BASELINE.search(model))
        rows.append({"model": model, "input": data, "n": int(part["n"].max()), "baseline": baseline, "cells": cells})
    headline = next((metric for metric in HEADLINE if metric in metrics), metrics[0])
    judged = [row for row in rows if headline in row["cells"]]
    order = sorted(judged, key=lambda row: row["cells"][headline].value, reverse=headline not in LOWER_IS_BETTER)
    network = next((row for row in order if not row["baseline"]), None)
    return {"name": name, "metrics": metrics, "rows": rows, "headline": headline, "best": network or order[0],
            "set": where, "judged": judged, "forest": _forest(name, headline, judged)}  # fmt: skip


def _forest(task: str, metric: str, rows: list[dict]) -> str:
    """The headline metric of every model with its interval, as SVG."""
    from ..plots import plot_forest

    points = [row["cells"][metric] for row in rows]
    frame = pd.DataFrame({
        "label": [f"{row['model']}, {row['input']}" if row["input"] else row["model"] for row in rows],
        "value": [p.value for p in points], "low": [p.low for p in points], "high": [p.high for p in points],
    })  # fmt: skip
    ax = plot_forest(frame, _canvas(5.6, 0.8 + 0.28 * len(rows)), xlabel=f"{measure(metric)}, 95 % interval")
    return _svg(ax)


def _curves(records: dict) -> list[dict]:
    """One dict a trained model: its name and learning curve as SVG."""
    from ..plots import plot_history

    histories = [(f"{name.split('_')[0]} · {model}", rows) for name, record in records.items()
                 for model, rows in record.get("histories", {}).items() if rows]  # fmt: skip
    return [
        {"model": title, "svg": _svg(plot_history(rows, _canvas(4.8, 3.2), title=title))} for title, rows in histories
    ]


def _canvas(width: float, height: float):
    from matplotlib.figure import Figure

    from ..plots import use_style

    use_style()
    return Figure(figsize=(width, height), layout="constrained").subplots()


def _svg(ax) -> str:
    """A figure as a data URI, the same for the same content."""
    import matplotlib

    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "labhelpers"}):
        ax.figure.savefig(stream, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()


def _entry(name: str, path: Path, executed: dict, state: dict) -> dict:
    """A notebook's line in the index."""
    nb = executed.get(name) or nbformat.read(path, 4)
    titles = [re.search(r"^# *(.+)", cell.source, re.M) for cell in nb.cells if cell.cell_type == "markdown"]
    title = next((found[1] for found in titles if found), name)
    page = f"html/{name}.html" if can_set() else f"notebooks/{name}.ipynb"
    return {
        "name": name,
        "title": title,
        "page": page if name in executed else "",
        "state": "not run",
        **state.get(name, {}),
    }


# --- PDF and zip ------------------------------------------------------------------------------------------------------


def write_pdf(target: Path, bodies: dict[str, str], context: dict, *, code: bool = False) -> None:
    """Title page, contents, summary, then every notebook's prose, figures and tables, set by typst."""
    import pypandoc
    import typst

    for name, body in bodies.items():
        if first := re.search(r'<h1 id="([^"]+)"', body):  # where a link to the notebook as a whole leads
            bodies = bodies | {name: body.replace(f'{first[1]}"', f'{name}"')}
    document = _render("pdf.html", bodies=bodies, **context)
    if not code:
        document = re.sub(r'<details class="code">.*?</details>', "", document, flags=re.S)
    document = re.sub(r'(<pre class="stdout">)(.*?)(</pre>)', _shorten, document, flags=re.S)
    document = re.sub(r'<pre class="stdout">Recorded in [^<]*</pre>', "", document)  # often alone on a last page
    document = re.sub(r"<audio.*?</audio>", "(The sound is in the HTML report.)", document, flags=re.S)
    document = document.replace('class="sourceCode python"', 'class="python"')
    document = _relink(document, "pdf")
    known = set(re.findall(r'\bid="([^"]+)"', document))
    document = re.sub(
        r'<a\s[^>]*?href="#([^"]+)"[^>]*>(.*?)</a>', lambda m: m[0] if m[1] in known else m[2], document, flags=re.S
    )
    with tempfile.TemporaryDirectory() as folder:
        options = ["--standalone", f"--template={TEMPLATES / 'report.typ'}", "--extract-media=media"]
        setting = pypandoc.convert_text(document, "typst", format="html", extra_args=options, cworkdir=folder)
        for picture in Path(folder, "media").glob("*.png"):
            if picture.stat().st_size > LARGE:  # spectrograms: half the size, and no difference to see in print
                Image.open(picture).convert("RGB").save(picture.with_suffix(".jpg"), quality=88)
                setting = setting.replace(picture.name, f"{picture.stem}.jpg")
        source = Path(folder) / "report.typ"
        source.write_text(setting, encoding="utf-8")
        partial = target.with_name(f"{target.name}.partial")
        partial.write_bytes(typst.compile(str(source), root=folder))
        partial.replace(target)


def _shorten(match: re.Match) -> str:
    """A long printed output as its ends: on paper nobody scrolls."""
    lines = match[2].splitlines()
    if len(lines) > 2 * ENDS + 4:
        lines[ENDS:-ENDS] = [f"… {len(lines) - 2 * ENDS} lines more in the HTML report …"]
    return match[1] + "\n".join(lines) + match[3]


def write_zip(out: Path) -> Path:
    """deliverable.zip: the report, the executed notebooks and the code; the same bytes for the same files."""
    files = {}
    for folder, pattern in (
        (".", "index.html"),
        (".", "report.pdf"),
        ("html", "*.html"),
        ("notebooks", "*.ipynb"),
        ("records", "*.json"),
    ):
        files |= {path.relative_to(out).as_posix(): path for path in (out / folder).glob(pattern)}
    checkout = PACKAGE.parent
    code = [*PACKAGE.glob("*.py"), *TEMPLATES.iterdir()]
    code += [path for name in ("README.md", "pyproject.toml", "constraints.txt") if (path := checkout / name).is_file()]
    files |= {f"code/{path.relative_to(checkout).as_posix()}": path for path in code}
    target = out / "deliverable.zip"
    partial = target.with_name(f"{target.name}.partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name), path.read_bytes(), zipfile.ZIP_DEFLATED)  # dated 1980-01-01
    partial.replace(target)
    return target
