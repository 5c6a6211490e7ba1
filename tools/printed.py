"""How a notebook's printed output is compared with what it printed when it was committed."""

from __future__ import annotations

import re

DECIMALS = re.compile(r"-?\d+\.\d{3,}")


class Printed(str):
    """Printed text that equals another one up to a step in the last place of three or more.

    A loss of .49951 is .500, and .49949 on another processor .499. All else has to be the same.
    """

    __hash__ = str.__hash__

    def __eq__(self, other):
        if not isinstance(other, str) or DECIMALS.sub("#", self) != DECIMALS.sub("#", other):
            return False
        pairs = zip(DECIMALS.findall(self), DECIMALS.findall(other), strict=True)
        return all(nearly(a, b) for a, b in pairs)

    def __ne__(self, other):
        return not self == other


def as_compared(text: str) -> Printed:
    """Without how the sample was come upon, which is no result."""
    return Printed(re.sub(r"^(Corpus: \S+) \(.*\)$", r"\1", text, flags=re.M))


def nearly(a: str, b: str) -> bool:
    places = len(a.partition(".")[2])
    step = 1.001 * 10**-places
    return places == len(b.partition(".")[2]) and abs(float(a) - float(b)) <= step
