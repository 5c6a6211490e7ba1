"""What the notebooks' answers say is what their outputs show and what the reference holds."""

import pytest

from labhelpers.metrics import Difference, Estimate
from tools import answers

RESULTS = {
    "emotify": {
        "CNN accuracy": Estimate(0.754, 0.70, 0.80, 0.02, 3, 159),
        "CNN - LSTM accuracy": Difference(0.091, 0.02, 0.16, 3, 3, 159),
        "CNN weakest class": "Pop",
    }
}
GOOD = """**Answer.** The CNN is *ahead* of the LSTM: 0.75 (+0.09), 43 % of Pop, 17 of 40, right.

<!-- 0.75 emotify CNN accuracy; ahead emotify CNN - LSTM accuracy;
+0.09 emotify CNN - LSTM accuracy; Pop emotify CNN weakest class -->"""
OUTPUT = "CNN 0.754  difference +0.091\nPop recall 0.425, 17 right of 40"


def problems(text, output, results):
    found = answers.not_shown(text, output) + answers.wrong_bindings(text, results)
    return found + answers.unbound_verdicts(text)


@pytest.mark.parametrize("path", answers.NOTEBOOKS, ids=lambda path: path.stem)
def test_every_number_said_is_shown_and_every_result_is_the_reference(path):
    output, results = answers.shown(path), answers.reference_results(path.stem)
    wrong = {n: problems(text, output, results) for n, text in answers.answers(path)}
    assert not {number: found for number, found in wrong.items() if found}


def test_a_true_answer_passes():
    assert problems(GOOD, OUTPUT, RESULTS) == []


@pytest.mark.parametrize(
    "old, new",
    [
        ("0.75 (", "0.76 ("),  # a number of the text
        ("43 %", "53 %"),
        ("17 of 40", "18 of 40"),
        ("*ahead*", "*behind*"),  # a verdict
        ("of Pop", "of Rock"),  # a named class
        ("<!-- 0.75", "<!-- 0.85"),  # a binding
        ("<!-- 0.75 emotify CNN", "<!-- 0.75 emotify LSTM"),
        ("; ahead emotify CNN - LSTM accuracy", ""),
        ("; ahead", "; behind"),
    ],
)
def test_a_changed_answer_fails(old, new):
    assert old in GOOD
    assert problems(GOOD.replace(old, new, 1), OUTPUT, RESULTS)


def test_code_formulas_links_and_folded_text_are_exempt():
    text = "`0.11` $0.22$ [0.33](x-0.44) <details>0.55</details>\n```\n0.66\n```\n"
    assert answers.not_shown(text, "") == ["0.33"]
