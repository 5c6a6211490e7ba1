"""Figures: drawn into the axes they are given, labelled, and with the numbers in their text."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from labhelpers import plots

RNG = np.random.default_rng(0)
MEL, CHROMA = RNG.uniform(-80, 0, (128, 60)), RNG.uniform(0, 1, (12, 60))
COUNTS = pd.Series({"Rock": 12, "Jazz": 5})
EPOCHS = [
    {"epoch": i + 1, "train_loss": 1 / (i + 1), "val_loss": 1.0, "val_score": 0.1 * i, "lr": 0.1}
    for i in range(4)
]
FOREST = pd.DataFrame(
    {
        "label": ["LSTM", "CNN"],
        "value": [0.5, 0.7],
        "low": [0.4, 0.65],
        "high": [0.6, 0.8],
    }
)
TITLE = {"title": "clip 11, Rock"}
CONFUSION = np.array([[3, 1], [0, 0]])
DRAWN = {
    "mel": lambda ax: plots.plot_spectrogram(MEL, ax, **TITLE),
    "beat mel": lambda ax: plots.plot_spectrogram(MEL, ax, beat_synced=True, **TITLE),
    "chroma": lambda ax: plots.plot_spectrogram(CHROMA, ax, kind="chroma", **TITLE),
    "counts": lambda ax: plots.plot_class_counts(COUNTS, ax, **TITLE),
    "history": lambda ax: plots.plot_history(EPOCHS, ax, best_epoch=2, **TITLE),
    "confusion": lambda ax: plots.plot_confusion(CONFUSION, ["a", "b"], ax, **TITLE),
    "forest": lambda ax: plots.plot_forest(FOREST, ax, xlabel="accuracy", reference=0.2, **TITLE),
    "scatter": lambda ax: plots.plot_scatter([0.1, 0.9], [0.3, 0.6], ax, axis="valence", **TITLE),
}


@pytest.fixture(autouse=True)
def no_windows(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("a function called plt.show"))
    yield
    plt.close("all")


@pytest.fixture
def shown(monkeypatch):
    """What is displayed: (content, metadata) of each output."""
    seen = []
    monkeypatch.setattr(
        plots, "display", lambda content, metadata=None, raw=False: seen.append((content, metadata))
    )
    return seen


@pytest.mark.parametrize("name", DRAWN)
def test_axes_in_axes_out_with_labels(name):
    ax = plt.subplots()[1]
    assert DRAWN[name](ax) is ax and len(plt.get_fignums()) == 1
    ax.figure.canvas.draw()
    assert ax.get_title() == "clip 11, Rock" and ax.get_xlabel()
    # In some the rows' names say what they are.
    assert ax.get_ylabel() or name in ("counts", "forest")
    assert DRAWN[name](None).figure is not ax.figure


@pytest.mark.parametrize(
    "name, x, y, colours",
    [
        ("mel", "(s)", "Hz", "dB"),
        ("beat mel", "beat", "Hz", "dB"),
        ("chroma", "(s)", "pitch class", ""),
    ],
)
def test_units_of_spectrograms(name, x, y, colours):
    ax = DRAWN[name](None)
    bar = ax.figure.axes[-1]
    ax.figure.canvas.draw()
    assert x in ax.get_xlabel() and y in ax.get_ylabel()
    assert bar.get_ylabel() and all(colours in text.get_text() for text in bar.get_yticklabels())


@pytest.mark.parametrize(
    "kind, values, limits", [("mel", MEL, (-80, 0)), ("chroma", CHROMA, (0, 1))]
)
def test_spectrogram_shows_its_values_on_a_fixed_scale(kind, values, limits):
    frozen = values.copy()
    frozen.setflags(write=False)
    ax = plots.plot_spectrogram(frozen, kind=kind, beats=[10, 20])
    mesh = ax.collections[0]
    np.testing.assert_allclose(np.asarray(mesh.get_array()).reshape(values.shape), values)
    assert mesh.get_clim() == limits
    seconds = ax.collections[1].get_segments()[1][0][0]
    assert seconds == pytest.approx(20 * 512 / 22050)  # beats are given as frames
    # Time runs to the right, in seconds; rows upwards, from low to high.
    edges = mesh.get_coordinates()
    assert edges[0, -1, 0] == pytest.approx(60 * 512 / 22050, rel=0.02)
    assert edges[-1, 0, 1] > edges[0, 0, 1]


def test_pitch_classes_are_named():
    ax = DRAWN["chroma"](None)
    ax.figure.canvas.draw()
    assert {"C", "E", "G"} <= {label.get_text() for label in ax.get_yticklabels()}


def test_counts_stand_top_to_bottom():
    ax = DRAWN["counts"](None)
    ax.figure.canvas.draw()
    # The first name is drawn last, at the top.
    assert [bar.get_width() for bar in ax.patches] == [5, 12]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["Jazz", "Rock"]


def test_history_draws_each_curve_under_its_name():
    epochs = [
        {"epoch": i, "train_loss": 1 / i, "val_loss": 2 / i, "val_score": i / 9} for i in (1, 2, 3)
    ]
    ax = plots.plot_history(epochs, best_epoch=3)
    left, right = ax.figure.axes
    curves = {line.get_label(): line for axes in (left, right) for line in axes.get_lines()}
    for name, values in (
        ("training loss", [1, 1 / 2, 1 / 3]),
        ("validation loss", [2, 1, 2 / 3]),
        ("validation score", [1 / 9, 2 / 9, 3 / 9]),
    ):
        np.testing.assert_allclose(curves[name].get_ydata(), values)
        np.testing.assert_allclose(curves[name].get_xdata(), [1, 2, 3])
    assert left.get_lines()[-1].get_xdata()[0] == 3  # the epoch that is kept
    assert "loss" in left.get_ylabel() and "score" in right.get_ylabel()


def test_history_without_validation():
    epochs = [{key: row[key] for key in ("epoch", "train_loss")} for row in EPOCHS]
    ax = plots.plot_history(epochs)
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), [1, 1 / 2, 1 / 3, 1 / 4])
    assert len(ax.figure.axes) == 1 and len(plots.plot_history(EPOCHS).figure.axes) == 2


def test_confusion_counts_and_shares():
    ax = DRAWN["confusion"](None)
    assert [text.get_text() for text in ax.texts] == ["3", "1", "0", "0"]
    shares = np.asarray(ax.collections[0].get_array()).ravel()
    np.testing.assert_allclose(shares, [0.75, 0.25, 0, 0])  # no 0 / 0
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b"]
    assert "predicted" in ax.get_xlabel() and "true" in ax.get_ylabel()


def test_forest_draws_values_and_intervals_top_to_bottom():
    ax = DRAWN["forest"](None)
    segments = ax.collections[0].get_segments()
    np.testing.assert_allclose([segment[:, 0] for segment in segments], [[0.4, 0.6], [0.65, 0.8]])
    assert segments[0][0][1] > segments[1][0][1]
    np.testing.assert_allclose(ax.get_lines()[0].get_xdata(), [0.5, 0.7])
    assert dict(zip([text.get_text() for text in ax.get_yticklabels()], ax.get_yticks())) == {
        "LSTM": 1,
        "CNN": 0,
    }


def test_scatter_has_the_truth_across_and_the_prediction_up():
    ax = DRAWN["scatter"](None)
    np.testing.assert_allclose(ax.collections[0].get_offsets(), [[0.1, 0.3], [0.9, 0.6]])
    assert "true valence" in ax.get_xlabel() and "predicted valence" in ax.get_ylabel()


def test_maps_are_a_grid():
    maps = RNG.random((5, 4, 6))
    fig = plots.plot_maps(maps, columns=3, titles=list("abcde"), suptitle="maps", limits=(0, 2))
    drawn = [ax for ax in fig.axes if ax.images]
    assert len(fig.axes) == 6 and [ax.get_title() for ax in drawn] == list("abcde")
    for ax, values in zip(drawn, maps, strict=True):
        np.testing.assert_allclose(ax.images[0].get_array(), values)
        assert ax.images[0].get_clim() == (0, 2) and ax.images[0].origin == "lower"


# --- showing --------------------------------------------------------------------------------------


def text_of(shown, draw, **options):
    """The plain text of the figure that `draw(ax)` makes."""
    fig, ax = plt.subplots()
    draw(ax)
    plots.show(fig, "A caption.", **options)
    return shown[-2][0]["text/plain"]


def test_a_figure_is_shown_with_its_caption_and_closed(shown):
    text = text_of(shown, DRAWN["forest"], key=True)
    (content, metadata), (caption, is_caption) = shown
    assert set(content) == {"image/png", "text/plain"} and text.startswith("Figure: A caption.\n")
    assert metadata["caption"] == "A caption." and metadata["key"] is True
    assert metadata["image/png"]["alt"] == "A caption."
    assert caption["text/markdown"] == "*Figure: A caption.*" and is_caption == {"is_caption": True}
    assert plt.get_fignums() == []


CHANGES = {
    "a value": (lambda ax: ax.plot([1, 2, 4]), lambda ax: ax.plot([1, 2, 3])),
    "the order": (lambda ax: ax.plot([1, 2, 4]), lambda ax: ax.plot([2, 1, 4])),
    "axes": (lambda ax: ax.scatter([1, 2], [3, 5]), lambda ax: ax.scatter([3, 5], [1, 2])),
    "a bar": (lambda ax: ax.bar([0, 1], [1, 2]), lambda ax: ax.bar([0, 1], [2, 1])),
    "a picture": (lambda ax: ax.imshow(MEL), lambda ax: ax.imshow(MEL[::-1])),
    "a mesh": (lambda ax: ax.pcolormesh(MEL), lambda ax: ax.pcolormesh(np.abs(MEL))),
    "an interval": (
        lambda ax: plots.plot_forest(FOREST, ax),
        lambda ax: plots.plot_forest(FOREST.assign(low=[0.3, 0.65]), ax),
    ),
    "a label": (lambda ax: ax.set_xlabel("true"), lambda ax: ax.set_xlabel("predicted")),
    "a legend": (
        lambda ax: ax.plot([1, 2], label="training loss"),
        lambda ax: ax.plot([1, 2], label="validation loss"),
    ),
    "a row's name": (
        lambda ax: ax.barh(["Rock", "Jazz"], [1, 2]),
        lambda ax: ax.barh(["Jazz", "Rock"], [1, 2]),
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_text_of_a_figure_changes_with_what_it_shows(shown, what):
    one, other = CHANGES[what]
    assert text_of(shown, one) == text_of(shown, one) != text_of(shown, other)


def test_the_text_of_a_figure_stays_when_the_last_bits_do_not(shown):
    """Another processor: values move by 1e-6 of the largest, and what is nearly 0 changes sign."""
    values = np.array([[0.5, 1e-9], [0.25, -0.75]])
    moved = values + 1e-7 * np.array([[1, -1], [1, 1]])
    texts = [text_of(shown, lambda ax, v=v: ax.imshow(v)) for v in (values, moved)]
    assert texts[0] == texts[1]


def test_figures_of_results_that_differ_between_machines_leave_the_numbers_out(shown):
    texts = {
        text_of(shown, lambda ax, end=end: ax.plot([1, 2, end]), digits=None) for end in (3, 4)
    }
    assert len(texts) == 1 and "line 3x2" in texts.pop()


def test_what_cannot_be_drawn_has_no_number(shown):
    assert "line 2x2" in text_of(shown, lambda ax: ax.plot([np.nan, np.nan]))
    assert "nan" not in text_of(shown, lambda ax: ax.plot([np.nan, 1.0]))


def test_a_table_in_html_and_in_text(shown):
    frame = pd.DataFrame({"F1": [0.51234, np.nan, 0.7], "clips": [3, 4, 5]}, ["<b>", "b", "c"])
    plots.table(frame, "A table.", best="F1", digits=2)
    content, metadata = shown[0]
    assert metadata == {"caption": "A table."}
    assert "<strong>0.70</strong>" in content["text/html"] and "0.51" in content["text/html"]
    assert content["text/html"].count("<strong>") == 1 and "&lt;b&gt;" in content["text/html"]
    lines = content["text/plain"].splitlines()
    assert lines[1].split() == ["<b>", "0.51", "3"] and lines[2].split() == ["b", "–", "4"]


def test_a_player_is_short_and_at_one_loudness(shown, monkeypatch):
    written = {}
    own = plots.soundfile.write

    def write(stream, samples, rate, format):
        written.update(samples=samples, rate=rate)
        own(stream, samples, rate, format=format)

    monkeypatch.setattr(plots.soundfile, "write", write)
    plots.player(3 * np.sin(np.arange(22050 * 9) / 20), "A <tone>.")
    assert written["rate"] == 22050 and len(written["samples"]) == 5 * 22050
    assert np.abs(written["samples"]).max() == pytest.approx(0.8)
    content, _ = shown[0]
    assert "A &lt;tone&gt;." in content["text/html"] and content["text/plain"] == "Sound: A <tone>."
    assert len(content["text/html"]) < 120_000
