"""HTML from notebooks, which may come from somebody else, by white lists of tags and attributes.

nh3 parses as browsers do. Scripts, event handlers, styles and what would be fetched are gone.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import nh3

MATH = (
    "math semantics mrow mi mn mo ms mtext mspace msub msup msubsup munder mover munderover mfrac "
    "msqrt mroot mtable mtr mtd mstyle mpadded mphantom menclose mmultiscripts"
)
TAGS = nh3.ALLOWED_TAGS - {"map", "area"} | {"audio", *MATH.split()}
DROPPED = {
    "script",
    "style",
    "svg",
    "annotation",
    "title",
    "textarea",
    "noscript",
}  # with all in it
ATTRIBUTES = (
    "id class lang href src alt width height align start scope colspan rowspan open controls "
    "aria-label data-time display mathvariant stretchy form fence separator accent accentunder "
    "columnalign columnspacing rowspacing notation linethickness"
)
CLASSES = (
    "answer summary out code stdout stderr error player dataframe sourceCode python "
    "kw cf im st ss vs ch sc dv fl bn cn co"  # of coloured code
)
SOURCE = re.compile(r"data:(image/(png|jpeg|gif|webp)|audio/[\w.+-]+);base64,[\w+/=\s]*", re.A)


def clean(text: str, link: Callable[[str], str | None] = lambda target: None) -> str:
    """HTML with its elements closed, of which nothing can run, fetch or cover the page.

    link : turns the target of a link into one on a page, or into None for none
    """

    def checked(tag: str, name: str, value: str) -> str | None:
        if name == "href":
            return link(value)
        if name == "src":
            return value if SOURCE.fullmatch(value) else None
        if name == "id":  # of headings alone: no element takes the place of the page's own
            return value if re.fullmatch("h[1-6]", tag) else None
        if name == "class":
            return " ".join(word for word in value.split() if word in CLASSES.split()) or None
        return value

    text = nh3.clean(
        text,
        tags=TAGS,
        clean_content_tags=DROPPED,
        attributes={"*": set(ATTRIBUTES.split())},
        attribute_filter=checked,
        url_schemes={"http", "https", "data"},
        link_rel=None,
    )
    text = text.replace("<th></th>", "<td></td>")  # a head without a word is none
    text = text.replace("<table", '<div class="scroll"><table').replace(
        "</table>", "</table></div>"
    )
    # Chromium sets no space where a function is applied: "ln n" would read "lnn".
    return text.replace("<mo>\u2061</mo>", '<mo>\u2061</mo><mspace width="0.17em"></mspace>')
