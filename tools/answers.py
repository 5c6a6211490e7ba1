"""A number said is a number shown: the answers of the notebooks are held against the results.

Weak check: each decimal number, percentage and "a of b" in an answer stands among the outputs of
its notebook, rounded as written. Strong check: a comment at the end of the cell binds numbers,
verdicts and names to reference results,

    <!-- 0.75 emotify CNN mel accuracy; ahead emotify CNN mel - LSTM mel accuracy -->

and each is looked up there. Code, formulas, links and folded text are exempt.

    python -m tools.answers            prints what does not agree
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from labhelpers import records
from labhelpers.metrics import Difference, verdict

NOTEBOOKS = sorted((records.PROJECT / "notebooks").glob("[0-9]*.ipynb"))
EXEMPT = re.compile(
    r"<!--.*?-->|<details>.*?</details>|```.*?```|`[^`]*`|\$[^$]*\$|\]\([^)]*\)", re.S
)
SHARE = re.compile(r"(?<![\w.])(\d+) of (?:the |all )?(\d+)(?![\w.])")
NUMBER = re.compile(r"(?<![\w.])([-+−–]?\d*\.\d+|\d+(?= ?%))(?![\w])")
BINDING = re.compile(r"<!--(.*?)-->", re.S)
WORDS = ("ahead", "behind", "not distinguishable")


def answers(path: Path):
    """Yield (cell number, text) of the answers of a notebook."""
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        if {"answer", "summary"} & set(cell["metadata"].get("tags", [])):
            yield number, "".join(cell["source"])


def shown(path: Path) -> str:
    """All text that a notebook's cells printed or displayed."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            parts += ["".join(data.get(kind, "")) for kind in ("text/plain", "text/markdown")]
            parts += ["".join(output.get("text", ""))]
    return "\n".join(parts).replace("−", "-")


def not_shown(text: str, output: str) -> list[str]:
    """The numbers of an answer that its notebook does not show."""
    text = EXEMPT.sub(" ", text).replace("−", "-")
    values = [abs(float(value)) for value in re.findall(r"\d+\.\d+|\.\d+|\d+", output)]
    missing = []
    for match in SHARE.finditer(text):
        pair = [rf"(?<![\d.]){number}(?:\.0+)?(?![\d.]*\d)" for number in match.groups()]
        if not all(re.search(number, output) for number in pair):
            missing.append(match[0])
    for match in NUMBER.finditer(text):
        said = abs(float(match[1].replace("–", "-")))
        digits = len(match[1].partition(".")[2])
        scales = [1.0]
        if text[match.end() :].lstrip().startswith("%"):
            scales = [1.0, 100.0]
        half = 0.5 * 10**-digits + 1e-9
        if not any(abs(scale * value - said) <= half for scale in scales for value in values):
            missing.append(match[0])
    return missing


def bound(text: str) -> list[tuple[str, str, str]]:
    """(what is said, corpus, key) of each binding at the end of an answer."""
    triples = []
    for comment in BINDING.findall(text):
        for part in filter(None, map(str.strip, comment.split(";"))):
            match = re.fullmatch(r"(not distinguishable|\S+)\s+(\S+)\s+(.+)", part, re.S)
            if match is None:
                raise ValueError(f"{part!r} is not VALUE CORPUS KEY")
            triples.append((match[1], match[2], " ".join(match[3].split())))
    return triples


def wrong_bindings(text: str, results: dict[str, dict]) -> list[str]:
    """The bindings of an answer that its text does not say, or that a result contradicts.

    results : corpus -> key -> result, of the whole series
    """
    prose = EXEMPT.sub(" ", text).replace("−", "-")
    wrong = []
    for said, corpus, key in bound(text):
        value = results.get(corpus, {}).get(key)
        if said not in " ".join(prose.replace("*", "").split()) and said.lstrip("+") not in prose:
            wrong.append(f"{said} is bound to {key}, but not said")
        elif value is None:
            wrong.append(f"{corpus} has no result {key!r}")
        elif not agrees(said, value):
            wrong.append(f"{key} on {corpus} is {value}, not {said}")
    return wrong


def agrees(said: str, value) -> bool:
    """Whether a word or number is the result, rounded as it is written."""
    if said in WORDS:
        return isinstance(value, Difference) and verdict(value) == said
    number = getattr(value, "value", value)
    if isinstance(number, str):
        return said.replace("_", " ") == number
    scale = 100 if said.endswith("%") else 1
    digits = len(said.rstrip("%").partition(".")[2])
    return (
        abs(scale * number - float(said.rstrip("%").replace("−", "-"))) <= 0.5 * 10**-digits + 1e-9
    )


def unbound_verdicts(text: str) -> list[str]:
    """Verdict words that an answer says and binds to no comparison."""
    prose = EXEMPT.sub(" ", text)
    said = [word for word in WORDS if re.search(rf"\*{word}\*", prose)]
    words = {value for value, _, _ in bound(text)}
    return [word for word in said if word not in words]


def reference_results(notebook: str) -> dict[str, dict]:
    """corpus -> key -> result of the committed runs; a notebook's own results come first."""
    merged = {}
    for name in ("sample", "emotify"):
        series = records.reference(name=name)
        merged[name] = {}
        for results in [*series.values(), series.get(notebook, {})]:
            merged[name] |= results
    return merged


def problems() -> list[str]:
    """Every disagreement in every answer, with its place."""
    lines = []
    for path in NOTEBOOKS:
        output, results = shown(path), reference_results(path.stem)
        for number, text in answers(path):
            place = f"{path.stem}, cell {number}"
            lines += [f"{place}: {said} is said and not shown" for said in not_shown(text, output)]
            lines += [f"{place}: {line}" for line in wrong_bindings(text, results)]
            lines += [f"{place}: {word} is bound to nothing" for word in unbound_verdicts(text)]
    return lines


if __name__ == "__main__":
    print("\n".join(problems()) or "all that the answers say is shown")
