"""report.pdf: the short report to hand in, of the answers and this run's figures and results."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import jinja2
import typst

from .pages import TEMPLATES, Page, convert, markdown, pictures, raw

PAGES = 6  # at most, if shorter answers can do it
WORDS = (150, 130, 110, 100, 95, 90, 85, 80, 70, 60, 45)  # of an answer: the first that fits
BRIEF = 45
WIDTH = 180  # mm of the text
READABLE = 0.7  # scale of a figure, whose text then has 7 points
FIGURES = (  # how their captions begin
    "Full spectrograms, and the same clips",
    "Training clips of each genre before",
    "Learning curves of the four",
    "Confusion matrices of the best LSTM",
    "CNN mel: losses of the first fold",
)
# What an item asks: > **5α.** Train an LSTM …
QUESTION = re.compile(r"^> \*\*(\d[^*]*?)\.?\*\*[ .:]*(.*(?:\n>(?! \*\*).*)*)", re.M)
# What refers to what the report does not hold: in brackets, and in a sentence.
ASIDE = re.compile(
    r" ?\((?:see )?(?:\[?notebook|exercise|matrix|figure|tested|below|there)\b(?:[^()]|\(.*?\))*\)"
)
ELSEWHERE = re.compile(r"notebook \d|exercise \d|\.ipynb", re.I)


def write_pdf(target: Path, context: dict) -> int:
    """Write the short report; returns its number of pages. Raises typst.TypstError."""
    about = {key: context[key] for key in ("title", "author", "course", "date")}
    about["corpus"] = context["corpus"].get("name", "")
    fields = "".join(f"{key}: {quoted(value)}, " for key, value in about.items())
    settings = f"#let about = ({fields})\n{(TEMPLATES / 'report.typ').read_text('utf-8')}\n"
    template = jinja2.Template((TEMPLATES / "report.md").read_text("utf-8"), trim_blocks=True)
    for words in WORDS:
        with tempfile.TemporaryDirectory() as name:
            source = Path(name, "report.typ")
            cells = [markdown(template.render(context))]
            for page in context["pages"].values():
                cells += chapter(page, words, source.parent)
            text = convert(cells, "typst").replace(".circle", ".o")  # the name in newer Typst
            source.write_text(settings + text, encoding="utf-8")
            target.write_bytes(typst.compile(str(source)))
            count = json.loads(typst.query(str(source), "<pages>", field="value", one=True))
        if count <= PAGES:
            break
    return count


def quoted(text: str) -> str:
    """Text as a string of Typst, in which nothing is markup."""
    return json.dumps(re.sub(r"[\x00-\x20\x7f]+", " ", text).strip(" "), ensure_ascii=False)


def chapter(page: Page, words: int, folder: Path) -> list[dict]:
    """A notebook up to "Deeper": each question with its answer, and the notebook's figure."""
    cells, questions, mention = [], [], ""
    for cell in page.cells:
        if re.search(r"^#+ .*Deeper", cell["source"], re.M):
            break
        for picture, about in pictures([cell]):
            wanted = about.get("caption", "").startswith(FIGURES)
            width = about.get("image/png", {}).get("width", 0) / 100 * 25.4 * READABLE
            if wanted and 0 < width < 1.15 * WIDTH:  # else a page is too narrow for it
                number = len(list(folder.glob("*.png"))) + 1
                (folder / f"{number}.png").write_bytes(picture)
                caption = quoted(about["caption"])
                image = f'image("{number}.png", width: {min(width, WIDTH):.0f}mm, alt: {caption})'
                text = f'#figure({image}, scope: "parent", caption: {caption})'
                cells.append(raw(text, "typst"))
                mention = f" (Figure\u00a0{number})"
        if cell["cell_type"] == "markdown":
            questions += QUESTION.findall(cell["source"])
        if "answer" in cell["metadata"].get("tags", []):
            for letter, question in questions:
                text = f"#question({quoted(letter)}, {quoted(shortened(question))})"
                cells.append(raw(text, "typst"))
            brief = any("question" in letter for letter, _ in questions)  # those of step 6
            whole = any("two sentences" in question for _, question in questions)
            limit = BRIEF if brief else max(WORDS) if whole else words
            cells.append(markdown(answer(cell["source"], limit) + mention))
            questions, mention = [], ""
    title = raw(f"= #{quoted(page.title)}", "typst")
    return [title, *cells] if cells else []


def shortened(question: str, limit: int = 120) -> str:
    """The first sentence of a question, without Markdown."""
    text = " ".join(re.sub(r"[*`>]|\[(.*?)\]\(.*?\)", r"\1", question).split())
    first = re.split(r"(?<=[.;?:])\s", re.sub(r"^See the links [^.]*\. ", "", text))[0]
    first = re.sub(":$", ".", first)
    return first if len(first) <= limit else first[:limit].rsplit(" ", 1)[0] + " …"


def answer(text: str, words: int) -> str:
    """The first sentences of an answer, without its label and what refers to other places."""
    text = re.sub(r"(?s:<!--.*?-->|<details>.*?</details>)|^[#>].*$", "", text, flags=re.M)
    text = text.replace("**Answer.**", "")
    text = re.sub(r"\*\*Answer, (.)", lambda match: f"**{match[1].upper()}", text)
    paragraph = ASIDE.sub("", " ".join(text.strip().split("\n\n")[0].split()))
    kept: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+(?=\W*[A-ZΑ-Ω0-9])", paragraph):
        if kept and len(f"{' '.join(kept)} {sentence}".split()) > words:
            break
        if not ELSEWHERE.search(sentence) and not sentence.endswith(":"):
            kept.append(sentence)
    return " ".join(kept)
