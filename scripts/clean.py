"""HTML from notebooks, which may come from somebody else, by white lists of tags and attributes.

Scripts, event handlers, styles and what would be fetched are gone; links and pictures are checked.
"""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from urllib.parse import unquote

VOID = {"br", "hr", "img", "wbr"}
DROPPED = {
    "script", "style", "svg", "iframe", "object", "template", "noscript", "title", "textarea",
    "select", "annotation", "annotation-xml", "xmp", "noembed", "noframes", "plaintext",
}  # with all that is in them  # fmt: skip
MATH = set(
    re.findall(
        r"\w+",
        "math semantics mrow mi mn mo ms mtext mspace msub msup msubsup munder mover munderover "
        "mfrac msqrt mroot mtable mtr mtd mstyle mpadded mphantom menclose mmultiscripts "
        "mprescripts",
    )
)
TAGS = set(
    re.findall(
        r"\w+",
        "a abbr audio b blockquote caption code col colgroup dd del details div dl dt em "
        "figcaption figure h1 h2 h3 h4 h5 h6 i ins kbd li mark ol p pre s samp small span "
        "strong sub summary sup table tbody td tfoot th thead tr u ul var",
    )
)
TAGS |= MATH | VOID
WORDS = r"[\w .:-]*"
CLASSES = r"((sourceCode|dataframe|player|stdout|stderr|python|text|bash|[a-z]{2})( |$))*"
ATTRIBUTES = {
    "class": CLASSES, "start": r"\d+", "open": "", "controls": "", "scope": WORDS, "align": WORDS,
    "colspan": r"\d+", "rowspan": r"\d+", "alt": ".*", "aria-label": ".*", "lang": WORDS,
    "width": WORDS, "height": WORDS, "display": WORDS, "mathvariant": WORDS, "stretchy": WORDS,
    "form": WORDS, "fence": WORDS, "separator": WORDS, "accent": WORDS, "accentunder": WORDS,
    "columnalign": WORDS, "columnspacing": WORDS, "rowspacing": WORDS, "notation": WORDS,
    "style": r"(text-align: \w+;?)( padding-(left|right): 0;?)?", "preload": WORDS,
    "data-time": r"[-\d. ]*",  # of a player's picture
}  # name -> what its value may be  # fmt: skip
SOURCES = {
    "img": re.compile(r"data:image/(png|jpeg|gif|webp|svg\+xml);base64,[\w+/=\s]*", re.A),
    "audio": re.compile(r"data:audio/[\w.+-]+;base64,[\w+/=\s]*", re.A),
}
NUMBER = re.compile(r"[-+−±]?\d[\d.,]*( %)?( [\[(±][^a-z]*)?|[-–—]?")
NOTHING = re.compile("(?!)")


def slug(text: str) -> str:
    """The id of a heading, and what a link to it is compared by."""
    return "-".join(re.findall(r"\w+", unquote(text).lower())) or "section"


class Cleaner(HTMLParser):
    """Writes HTML again, by white lists, with its elements closed.

    link : turns the target of a link into one on a page, or into "" for none
    headings : (level, id, text) of each so far
    """

    def __init__(self, link=lambda target: ""):
        super().__init__(convert_charrefs=True)
        self.link = link
        self.ids: dict[str, int] = {}
        self.headings: list[tuple[int, str, str]] = []
        self.parts: list[str] = []
        self.open: list[str] = []
        self.dropping, self.heading, self.cell = "", None, None

    def handle_starttag(self, tag, attributes):
        if self.dropping:
            return
        if tag in DROPPED:
            self.dropping = tag
            return
        if tag not in TAGS:
            return
        kept = self.attributes(tag, {name: value or "" for name, value in attributes})
        if tag in SOURCES and "src" not in kept:
            return
        if re.fullmatch("h[1-6]", tag):
            self.heading = (tag, len(self.parts), [])
        if tag == "td":
            self.cell = (len(self.parts), [])
        text = "".join(f' {name}="{html.escape(value)}"' for name, value in kept.items())
        self.parts.append(f"<{tag}{text}>")
        if tag not in VOID:
            self.open.append(tag)

    def attributes(self, tag: str, given: dict) -> dict:
        kept = {}
        for name, value in given.items():
            if (tag, name) == ("a", "href"):
                value = self.link(value.strip())
                known = bool(value)
            elif name == "src":
                known = bool(SOURCES.get(tag, NOTHING).fullmatch(value))
            else:
                known = re.fullmatch(ATTRIBUTES.get(name, "(?!)"), value, re.A | re.S)
            if known:
                kept[name] = value
        return kept

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if self.dropping:
            if tag == self.dropping:
                self.dropping = ""
            return
        if tag not in self.open:
            return
        while self.open:
            last = self.open.pop()
            self.parts.append(f"</{last}>")
            if self.heading and last == self.heading[0]:
                self.name_heading()
            if self.cell and last == "td":
                self.align_number()
            if last == tag:
                break

    def name_heading(self):
        tag, place, texts = self.heading
        text = " ".join("".join(texts).split())
        name = slug(text)
        self.ids[name] = self.ids.get(name, 0) + 1
        if self.ids[name] > 1:
            name += f"-{self.ids[name]}"
        self.parts[place] = f'<{tag} id="{name}">'
        self.headings.append((int(tag[1]), name, text))
        self.heading = None

    def align_number(self):
        place, texts = self.cell
        if NUMBER.fullmatch("".join(texts).strip()):
            self.parts[place] = self.parts[place].replace("<td", '<td align="right"')
        self.cell = None

    def handle_data(self, data):
        if self.dropping:
            return
        if self.cell:
            self.cell[1].append(data)
        if self.heading:
            self.heading[2].append(data)
        self.parts.append(html.escape(data, quote=False))
        if data == "\u2061" and self.open[-1:] == ["mo"]:
            # Chromium sets no space where a function is applied: "ln n" would read "lnn".
            self.handle_endtag("mo")
            self.parts.append('<mspace width="0.17em"></mspace>')

    def clean(self, text: str) -> str:
        self.parts = []
        self.feed(text)
        self.close()
        self.dropping = ""
        while self.open:
            self.handle_endtag(self.open[-1])
        self.reset()
        text = "".join(self.parts)
        return text.replace("<table", '<div class="scroll"><table').replace(
            "</table>", "</table></div>"
        )
