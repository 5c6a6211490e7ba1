"""report.pdf: the short report to hand in, of the answers and this run's figures and tables."""

from __future__ import annotations

import base64
import io
import json
import re
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import typst
from PIL import Image

from .clean import NUMBER, Cleaner
from .pages import METRICS, Page, capitalised, convert, kind_of

TEMPLATE = Path(__file__).parent / "templates" / "report.typ"
PAGES = 6  # at most, if smaller type and first paragraphs can do it
# Points of the text, paragraphs of an answer, key outputs of a notebook, answers beyond the
# assignment: the first that fits is used.
STEPS = [(10, 9, 9, True), (9.5, 9, 3, True), (9, 9, 2, True), (9, 9, 2, False), (9, 2, 2, False)]
STEPS += [(9, 1, 2, False), (9, 1, 1, False)]
WIDTH, COLUMN = 174, 84  # mm of the text, and of a column
READABLE = 0.75  # scale of a large figure: its text has 10 points at full size, labels 9
QUESTION = re.compile(r"^> \*\*(\d[^*]*?)\.?\*\*[ .:]*(.*(?:\n>(?! \*\*).*)*)", re.M)  # an item's
ROWS = 7  # models in a table of results


class Rows(HTMLParser):
    """The rows of an HTML table, as lists of [tag, text, is bold]."""

    def __init__(self, text: str):
        super().__init__()
        self.rows: list[list] = []
        self.cell = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td") and self.rows:
            self.cell = [tag, "", False]
            self.rows[-1].append(self.cell)
        elif tag == "strong" and self.cell:
            self.cell[2] = True

    def handle_endtag(self, tag):
        if tag in ("th", "td", "tr"):
            self.cell = None

    def handle_data(self, data):
        if self.cell:
            self.cell[1] += data


def quoted(text: str) -> str:
    """Text as a string of Typst, in which nothing is markup."""
    return json.dumps(re.sub(r"[\x00-\x20\x7f]+", " ", text).strip(" "), ensure_ascii=False)


def padded(rows: list[list]) -> list[list[tuple]]:
    """Rows of one length, each cell as (text, is bold)."""
    rows = [[cell if isinstance(cell, tuple) else (cell, False) for cell in row] for row in rows]
    width = max(map(len, rows))
    return [row + [("", False)] * (width - len(row)) for row in rows]


def breadth(rows: list[list[tuple]]) -> float:
    """About how many millimetres a table of small type needs without breaking a line."""
    heads = [max(map(len, text.split()), default=0) for text, _ in rows[0]]  # a head may be broken
    texts = [max(len(text) for text, _ in column) for column in zip(*rows[1:])]
    return sum(2.5 + 1.3 * max(sizes) for sizes in zip(heads, texts))


def table(rows: list[list[tuple]]) -> str:
    """Typst's table of padded rows, of which the first is the head; numbers to the right."""
    whole = breadth(rows) <= WIDTH  # else numbers are parted from their intervals
    sides = []
    for column in zip(*rows[1:]):
        numbers = all(NUMBER.fullmatch(text.strip()) for text, _ in column)
        sides.append("right" if numbers else "left")
    rule = "table.hline(stroke: .5pt)"
    head = ", ".join(f"strong({quoted(text)})" for text, _ in rows[0])
    lines = [f"table(columns: {len(sides)}, align: ({', '.join(sides)},), {rule}"]
    lines += [f"table.header({head}), {rule}"]
    for row in rows[1:]:
        texts = [(text.replace(" ", "\u00a0") if whole else text, bold) for text, bold in row]
        cells = [f"{'strong' if bold else 'text'}({quoted(text)})" for text, bold in texts]
        lines.append(", ".join(cells))
    return ",\n".join([*lines, f"{rule})"])


def figure(body: str, caption: str, wide: bool, label: str) -> str:
    scope = "parent" if wide else "column"
    place = f'placement: auto, scope: "{scope}", caption: {quoted(caption)}'
    return f"#figure({body}, {place}) <{label}>\n"


class Report:
    """The parts of the short report, in Markdown until `source` converts them all at once."""

    def __init__(self, folder: Path, paragraphs: int, limit: int, deeper: bool):
        self.folder, self.paragraphs, self.limit, self.deeper = folder, paragraphs, limit, deeper
        self.parts: list[tuple] = []  # ("markdown" or "typst", text, what follows it)
        self.count = {"fig": 0, "tab": 0}

    def add(self, kind: str, text: str, reference: str = "") -> None:
        self.parts.append((kind, text, reference))

    def add_page(self, page: Page) -> None:
        """A notebook: each question with its answer, and what stands for the notebook between."""
        answers = [cell for cell in page.cells if "answer" in cell["metadata"].get("tags", [])]
        if not answers:
            return
        self.add("typst", f"= #{quoted(page.title)}\n")
        questions, shown, left = [], [], self.limit
        for cell in page.cells:
            if re.search(r"^#+ .*Deeper", cell["source"], re.M) and not self.deeper:
                break
            for output in cell.get("outputs", []):
                if left and output.get("metadata", {}).get("key"):
                    shown += self.add_output(output)
                    left -= 1
            if cell["cell_type"] == "markdown":
                questions += QUESTION.findall(cell["source"])
            if cell in answers:
                for letter, question in questions:
                    asked = f"{quoted(letter + '.')}, {quoted(sentence(question))}"
                    self.add("typst", f"#question({asked})\n")
                paragraphs = answer_text(cell["source"]).split("\n\n")[: self.paragraphs]
                self.add("markdown", "\n\n".join(paragraphs), mention(shown))
                questions, shown = [], []
        if shown:
            self.add("typst", f"All in one:{mention(shown)}.")

    def add_output(self, output: dict) -> list[str]:
        """A key figure or table, numbered through; returns its label, if it is one."""
        caption = capitalised(output["metadata"].get("caption", ""))
        data = output["data"]
        if "image/png" in data:
            self.count["fig"] += 1
            label = f"fig{self.count['fig']}"
            picture = base64.b64decode("".join(data["image/png"]))
            (self.folder / f"{label}.png").write_bytes(picture)
            width, wide = self.width(picture, output["metadata"].get("image/png", {}))
            body = f'image("{label}.png", width: {width:.0f}mm, alt: {quoted(caption)})'
        else:
            rows = Rows(Cleaner().clean("".join(data.get("text/html", "")))).rows
            rows = [[(text, bold) for _, text, bold in row] for row in rows if row]
            if len(rows) < 2:
                return []
            self.count["tab"] += 1
            label = f"tab{self.count['tab']}"
            rows = padded(rows)
            body, wide = table(rows), breadth(rows) > COLUMN
        self.add("typst", figure(body, caption, wide, label))
        return [label]

    def width(self, picture: bytes, about: dict) -> tuple[float, bool]:
        """Millimetres that a figure is wide, and whether it goes over both columns."""
        image = Image.open(io.BytesIO(picture))
        full = float(about.get("width", image.width)) / 100 * 25.4
        if full * READABLE <= COLUMN:
            return min(full, COLUMN), False
        return min(full * READABLE, WIDTH), True

    def source(self) -> str:
        """The whole as Typst."""
        texts = [part[1] for part in self.parts if part[0] != "typst"]
        converted = iter(convert(texts, "typst") if texts else [])
        lines = []
        for kind, text, reference in self.parts:
            if kind == "markdown":
                first, *others = safe(next(converted)).strip().split("\n\n")
                text = "\n\n".join([first + reference, *others])
            lines.append(text)
        return "\n\n".join(lines)


def mention(labels: list[str]) -> str:
    return f" ({', '.join(f'@{label}' for label in labels)})" if labels else ""


def sentence(text: str, limit: int = 170) -> str:
    """The first sentence of a question, without Markdown."""
    text = re.sub(r"[*_`>]|\[(.*?)\]\(.*?\)", r"\1", text)
    text = " ".join(text.split())
    first = re.split(r"(?<=[.;?:])\s", text)[0]
    return first if len(first) <= limit else first[:limit].rsplit(" ", 1)[0] + " …"


def answer_text(text: str) -> str:
    """An answer without its label, the question above it, headings and the bound numbers."""
    text = re.sub(r"<!--.*?-->|</?details>|<summary>.*?</summary>", "", text, flags=re.S)
    lines = [line for line in text.splitlines() if not line.startswith((">", "#"))]
    text = "\n".join(lines).strip()
    return re.sub(r"^\*\*Answer[^*]*\*\*[ .:]*", "", text)


def safe(text: str) -> str:
    """Typst of pandoc without pictures, and with links to the web alone."""
    text = re.sub(r'#(box\()?image\("[^"]*"[^)]*\)\)?', "", text)
    text = re.sub(r'#link\("(?!https?://)[^"]*"\)\[', "#[", text)
    text = re.sub(r"#link\(<[^>]*>\)\[", "#[", text)
    text = re.sub(r"\s<[\w:-]+>\s*$", "", text, flags=re.M)  # labels
    for name, sign in (("dot", "⊙"), ("plus", "⊕"), ("times", "⊗")):
        text = text.replace(f"{name}.circle", sign)  # pandoc's name for it is not every typst's
    return text


def result_rows(task: str, models: dict) -> list[list[str]]:
    """The best models of each kind, and the weakest: what a table of so many rows has room for."""
    metrics = METRICS[task]
    order = list(models)
    chosen = [[model for model in order if kind_of(model) == kind][:3] for kind in kinds(order)]
    names = {model for group in chosen for model in group} | set(order[-1:])
    kept = [model for model in order if model in names][: ROWS - 1] + order[-1:]
    head = ["model", *[metric.replace("rho", "ρ") for metric in metrics]]
    rows = [head]
    for model in dict.fromkeys(kept):
        row = models[model]
        first = str(row[metrics[0]])
        others = [f"{row[m].value:.2f}" if m in row else "" for m in metrics[1:]]
        rows.append([model, first, *others])
    return rows


def kinds(models) -> list[str]:
    return list(dict.fromkeys(map(kind_of, models)))


def method(context: dict) -> list[str]:
    """A third of a page on data and on method, with the counts of this corpus, in Markdown."""
    corpus = context["corpus"]
    counts = {(row["folder"], row["split"]): row["files"] for row in corpus.get("counts", [])}
    genre = [counts.get(("fma_genre_spectrograms", split), 0) for split in ("train", "test")]
    affect = [counts.get(("multitask_dataset", split), 0) for split in ("train", "test")]
    music = "synthesised music" if corpus.get("sample") else "music"
    about_affect = (
        f" {affect[0]} clips have valence, energy and danceability (0 to 1); {affect[1]} more are "
        "to be predicted."
        if affect[0]
        else f" {context['note']}"
    )
    data = (
        f"**Data.** The corpus *{corpus.get('name', '')}* is {music}: {genre[0]} clips to learn "
        f"genre from and {genre[1]} to test it, before classes are merged and dropped (step 4)."
        f"{about_affect} A clip is a matrix of 140 rows: 128 mel bands in dB and the 12 notes of a "
        "chromagram, 43 columns per second. A beat-synced clip has one column per beat, the "
        "median of the columns between two beats."
    )
    how = (
        "**Method.** LSTMs and CNNs read windows of a clip. Each row is normalised by the training "
        "clips. AdamW trains them over one learning rate cycle, and the last weights are the "
        "network. A network is trained from several seeds. The baselines are support vector "
        "machines on row statistics or on descriptors of the spectrograms. Genre is judged on the "
        "test clips, which chose nothing. Affect is judged by five folds: every labelled clip is "
        "predicted by a model that learned from no clip of its track. Brackets are 95 % bootstrap "
        "intervals over clips (by track) and seeds. *Ahead* and *behind* mean that the interval of "
        "the paired difference leaves out 0, corrected for the number of comparisons; otherwise "
        "two models are *not distinguishable*."
    )
    return [data, how]


def write_pdf(target: Path, pages: dict[str, Page], tables: dict, context: dict) -> int:
    """Write the short report; returns its number of pages."""
    about = {"title": context["title"], "corpus": context["corpus"].get("name", "")}
    about |= {key: context[key] for key in ("author", "course", "date")}
    head = "".join(f"{key}: {quoted(value)}, " for key, value in about.items())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "report.typ"
        for size, *limits in STEPS:
            text = compose(Report(folder, *limits), pages, tables, context)
            settings = f"#let about = ({head})\n#let size = {size}\n"
            source.write_text(settings + TEMPLATE.read_text("utf-8") + text, encoding="utf-8")
            found = typst.query(str(source), "<pages>", field="value", one=True, root=name)
            count = int(json.loads(found))
            if count <= PAGES:
                break
        target.write_bytes(typst.compile(str(source), root=name))
    return count


def compose(report: Report, pages: dict[str, Page], tables: dict, context: dict) -> str:
    """The report as Typst: headlines, data and method, results, then notebook by notebook."""
    lines = [f"**{head['task'].capitalize()}.** {spoken(head)}" for head in context["headlines"]]
    for text in [*lines, *method(context)]:
        report.add("markdown", text)
    for task, models in tables.items():
        if models:
            report.count["tab"] += 1
            caption = f"{task.capitalize()}: best models of each kind, and the weakest"
            body = table(padded(result_rows(task, models)))
            label = f"tab{report.count['tab']}"
            report.add("typst", figure(body, caption, task == "affect", label))
    for page in pages.values():
        report.add_page(page)
    return report.source()


def spoken(head: dict) -> str:
    """A headline as sentences: its numbers, and what they come to."""
    numbers = [f"{row['label']} {row['score']} ({row['model']})" for row in head["rows"]]
    return f"{head['metric'].capitalize()}: {'; '.join(numbers)}. {head['sentence']}"
