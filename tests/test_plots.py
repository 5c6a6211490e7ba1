"""Figures, tables and sounds: what is drawn where, and text that is never read as code."""

import base64
import html
import io
import re
import warnings
from html.parser import HTMLParser

import librosa
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import soundfile
from matplotlib.colors import to_rgb
from PIL import Image

from labhelpers import plots
from labhelpers.audio import FRAME_RATE, N_FFT, SAMPLE_RATE
from labhelpers.metrics import Difference, Estimate

RNG = np.random.default_rng(0)
MEL, CHROMA = RNG.uniform(-80, 0, (128, 60)), RNG.uniform(0, 1, (12, 60))
SOUND = np.sin(np.arange(2 * SAMPLE_RATE) / 20)
SECOND = {"epoch": 2, "train_loss": 1.0, "val_loss": 1.5, "val_score": 0.4}
HISTORY = [{"epoch": 1, "train_loss": 2.0}, SECOND]
HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><b onmouseover="alert(1)">',
    "![i](http://example.com/i.png) [l](javascript:alert(1))",
    "*a* _b_ `c` # d | e",
    r"$\frac{1}$ A$AP $x$",
    "$",
    "&amp; &lt;",
    "{0} {caption} %s \\n",
    "Ροκ Рок 摇滚 🎵",
)


def estimate(value, half=0.05):
    return Estimate(value, value - half, value + half, 0.01, 3, 200)


def difference(value, half, ahead):
    return Difference(value, value - half, value + half, ahead, 3, 200)


@pytest.fixture(autouse=True)
def style():
    plots.use_style()
    yield
    plt.close("all")


@pytest.fixture
def shown(monkeypatch):
    """What is displayed: (content, metadata) of each output."""
    outputs = []
    monkeypatch.setattr(plots, "display", lambda it, metadata, raw: outputs.append((it, metadata)))
    return outputs


def texts(labels):
    return [label.get_text() for label in labels]


def cells(page):
    """The texts of an HTML table, row by row."""
    rows = re.findall(r"<tr.*?</tr>", page, re.S)
    return [[html.unescape(cell) for cell in re.findall(r">([^<>\n]+)<", row)] for row in rows]


def pixels(stream):
    return np.asarray(Image.open(stream).convert("RGB")).astype(int)


def decoded(data):
    return io.BytesIO(base64.b64decode(data.split(",")[-1]))


def played(shown, *arguments):
    """The page of a second's player, and its attributes: of each name the first."""
    plots.player(arguments[0], "A tone.", *arguments[1:], seconds=1.0)
    content, metadata = shown.pop()
    assert content["text/plain"] == "Sound: A tone." and metadata["caption"] == "A tone."
    page = Page(content["text/html"])
    return page, dict(page.attributes[::-1])


class Page(HTMLParser):
    """Tags, attributes and text of HTML; fails where tags do not close."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.pieces, self.open = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self.open += [tag] if tag != "img" else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" not in self.open:
            self.pieces.append(data)

    @property
    def text(self):
        return "".join(self.pieces)


# --- spectrograms ---------------------------------------------------------------------------------


def test_a_tone_lies_at_its_frequency():
    for hertz in (440.0, 3000.0):
        tone = np.sin(2 * np.pi * hertz * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
        power = librosa.feature.melspectrogram(y=tone, sr=SAMPLE_RATE, n_fft=N_FFT, n_mels=128)
        ax = plots.plot_spectrogram(librosa.power_to_db(power, ref=np.max))
        row = power.mean(1).argmax()
        low, high = ax.collections[0].get_coordinates()[row : row + 2, 0, 1]
        assert low < hertz < high  # the loudest row holds the tone
        heights = ax.transData.transform([(0, low), (0, high)])[:, 1] - ax.bbox.y0
        # On a mel scale all rows are equally high.
        np.testing.assert_allclose(heights / ax.bbox.height, [row / 128, (row + 1) / 128])


def test_spectrogram_has_its_values_scales_and_units():
    for S, limits, rows in ((MEL, (-80, 0), "2048"), (CHROMA, (0, 1), "C♯")):
        S.setflags(write=False)
        ax = plots.plot_spectrogram(S, title="clip 11")
        mesh = ax.collections[0]
        np.testing.assert_array_equal(mesh.get_array().reshape(S.shape), S)
        assert mesh.get_clim() == limits and len(ax.figure.axes) == 2
        assert ax.get_xlim()[1] == pytest.approx(59.5 / FRAME_RATE)
        assert all(word in plots.drawn(ax.figure) for word in ("clip 11", "time (s)"))
        assert rows in texts(ax.get_yticklabels())
    assert len(plots.plot_spectrogram(MEL, colorbar=False).figure.axes) == 1


def test_beats_are_marked_in_seconds_in_two_colours():
    ax = plots.plot_spectrogram(MEL, beats=[10, 20, 900], true_beats=[15.5])
    _, tracked, true = ax.collections
    times = [segment[0][0] * FRAME_RATE for segment in tracked.get_segments()]
    np.testing.assert_allclose(times, [10, 20])  # those within the picture
    assert true.get_segments()[0][0][0] * FRAME_RATE == pytest.approx(15.5)
    assert not np.allclose(tracked.get_color(), true.get_color())
    assert texts(ax.get_legend().get_texts()) == ["tracked beats", "true beats"]


def test_beat_synced_columns_are_as_wide_as_they_last():
    S = MEL[:, :4]
    ax = plots.plot_spectrogram(S, beat_synced=True)
    edges = ax.collections[0].get_coordinates()[0, :, 0]
    assert ax.get_xlabel() == "beat number" and np.ptp(np.diff(edges)) == 0
    for beats, end in (([10, 30, 40], 50), ([0, 10, 30, 40], 50), ([10, 30, 40, 43], 43)):
        ax = plots.plot_spectrogram(S, beat_synced=True, beats=beats)
        edges = ax.collections[0].get_coordinates()[0, :, 0]
        np.testing.assert_allclose(edges * FRAME_RATE, [0, 10, 30, 40, end])
        assert ax.get_xlabel() == "time (s)"
    with pytest.raises(ValueError, match="4 columns do not fit 2 beats"):
        plots.plot_spectrogram(S, beat_synced=True, beats=[5, 9])


# --- other figures --------------------------------------------------------------------------------


def test_counts_stand_top_to_bottom_in_their_colours():
    ax = plots.plot_class_counts(pd.Series({"Rock": 12, "Jazz": 5}), colours=["red", "blue"])
    tops = [ax.transData.transform(bar.get_center())[1] for bar in ax.patches]
    assert [bar.get_width() for bar in ax.patches] == [12, 5] and tops[0] > tops[1]
    assert [bar.get_facecolor()[:3] for bar in ax.patches] == [to_rgb("red"), to_rgb("blue")]
    assert texts(ax.get_yticklabels()) == ["Rock", "Jazz"] and texts(ax.texts) == ["12", "5"]


def test_histories_share_one_scale_and_legend():
    histories = {"mel": HISTORY, "chroma": HISTORY[:1], "fused": HISTORY}
    fig = plots.plot_histories(histories, lines={"ln 10": 2.3})
    curves = {line.get_label(): line.get_xydata() for line in fig.axes[0].get_lines()}
    np.testing.assert_allclose(curves["training loss"], [[1, 2], [2, 1]])
    np.testing.assert_allclose(curves["validation loss"], [[2, 1.5]])
    np.testing.assert_allclose(curves["ln 10"][:, 1], 2.3)
    assert [ax.get_title() for ax in fig.axes] == list(histories)
    assert len({ax.get_ylim() for ax in fig.axes}) == 1
    assert texts(fig.legends[0].get_texts()) == ["training loss", "validation loss", "ln 10"]
    scores = plots.plot_histories({"mel": HISTORY, "fused": HISTORY}, score="macro-F1").axes[2]
    assert scores.get_ylabel() == "macro-F1"
    assert [line.get_xydata().tolist() for line in scores.get_lines()] == 2 * [[[2, 0.4]]]


def test_confusion_shows_shares_and_leaves_zeros_empty():
    ax = plots.plot_confusion(np.array([[3, 1, 0], [0, 0, 0], [0, 2, 2]]), ["a", "b", "c"])
    written = [(*text.get_position(), text.get_text()) for text in ax.texts]
    assert written == [(0, 0, "3"), (1, 0, "1"), (1, 2, "2"), (2, 2, "2")]  # predicted, true
    shares = ax.images[0].get_array()
    np.testing.assert_allclose(shares, [[0.75, 0.25, 0], [0, 0, 0], [0, 0.5, 0.5]])
    assert texts(ax.get_xticklabels()) == texts(ax.get_yticklabels()) == ["a", "b", "c"]
    assert "predicted" in ax.get_xlabel() and "true" in ax.get_ylabel()


def test_forest_is_sorted_and_tells_the_reference_apart():
    estimates = {"LSTM": estimate(0.6), "CNN": estimate(0.7), "beat": estimate(0.1)}
    reference = {"CNN": estimate(0.8), "other": estimate(0.9)}
    ax = plots.plot_forest(estimates, reference=reference)
    assert texts(ax.get_yticklabels()) == ["beat", "LSTM", "CNN"]  # from the bottom
    places, colours = {}, {}
    for point, interval in zip(ax.get_lines(), ax.collections):
        (x,), (places[x],) = point.get_data()
        colours[x] = point.get_color()
        np.testing.assert_allclose(interval.get_segments()[0][:, 0], [x - 0.05, x + 0.05])
    assert places == {0.1: 0, 0.6: 1, 0.7: 2, 0.8: 1.75} and colours[0.7] != colours[0.8]
    assert texts(ax.get_legend().get_texts()) == ["network", "Emotify"]


def test_scatter_has_the_truth_across_and_the_prediction_up():
    ax = plots.plot_scatter([0.1, 0.9], [0.3, 0.6], axis="valence")
    np.testing.assert_allclose(ax.collections[0].get_offsets(), [[0.1, 0.3], [0.9, 0.6]])
    assert ax.get_xlabel() == "true valence" and ax.get_ylabel() == "predicted valence"


# --- showing --------------------------------------------------------------------------------------


def test_style_does_not_depend_on_the_users_settings(shown):
    for size in (10, 30):
        mpl.rcParams.update({"font.size": size, "figure.dpi": 50 + size, "lines.linewidth": size})
        plots.use_style()
        plots.show(plots.plot_histories({"mel": HISTORY}), "A line.")
    assert shown[0][0]["image/png"] == shown[2][0]["image/png"]


def test_a_figure_is_shown_with_its_caption_and_closed(shown):
    ax = plots.plot_scatter([0.1, 0.9], [0.3, 0.6], axis="valence")
    plots.show(ax.figure, "A line.", key=True)
    (content, metadata), (caption, is_caption) = shown
    assert set(content) == {"image/png", "text/plain"} and plt.get_fignums() == []
    assert content["text/plain"].startswith("Figure: A line.\n") and metadata["key"]
    assert metadata["caption"] == metadata["image/png"]["alt"] == "A line."
    assert Page(caption["text/html"]).text == "Figure: A line." and is_caption == {"is_caption": 1}


def test_a_picture_of_256_colours_has_those_of_the_figure():
    """Of both maps in one figure, so many that none is off."""
    fig, axes = plt.subplots(2)
    for S, ax in zip((MEL, CHROMA), axes):
        plots.plot_spectrogram(S, ax)
    fig.canvas.draw()  # it is laid out once
    fig.set_layout_engine("none")
    picture, whole = pixels(decoded(plots._png(fig)[0])), io.BytesIO()
    fig.savefig(whole, dpi=plots.SHARPNESS * fig.dpi)
    assert np.abs(picture - pixels(whole)).max() < 8


@pytest.mark.parametrize(
    "method, first, second",
    [
        ("plot", [1, 2, 4], [2, 1, 4]),
        ("scatter", ([1, 2], [3, 5]), ([3, 5], [1, 2])),
        ("bar", ([0, 1], [1, 2]), ([0, 1], [2, 1])),
        ("imshow", MEL, MEL[::-1]),
        ("pcolormesh", MEL, np.abs(MEL)),
        ("errorbar", ([1], [2], [0.3]), ([1], [2], [0.4])),
        ("set_xlabel", "true", "predicted"),
        ("barh", (["Rock", "Jazz"], [1, 2]), (["Jazz", "Rock"], [1, 2])),
    ],
)
def test_the_text_of_a_figure_changes_with_what_it_shows(method, first, second):
    words = []
    for values in (first, first, second):
        fig, ax = plt.subplots()
        getattr(ax, method)(*values if isinstance(values, tuple) else [values])
        words.append(plots.drawn(fig))
    assert words[0] == words[1] != words[2]


def test_the_text_of_a_figure_stays_where_numbers_may_differ():
    """Another processor: values move by 1e-7 of the largest, and what is nearly 0 changes sign."""
    values = np.array([[0.5, 1e-9], [0.25, -0.75]])

    def text(values, digits=3):
        fig, ax = plt.subplots()
        ax.imshow(values)
        return plots.drawn(fig, digits)

    assert text(values) == text(values + 1e-7 * np.array([[1, -1], [1, 1]])) != text(2 * values)
    assert text(values, None) == text(2 * values, None) and "2x2" in text(values, None)
    assert "nan" not in text([[np.nan, 1]]) + text([[np.nan, np.nan]])


def test_a_table_in_html_and_in_text(shown):
    columns = {"F1": [0.51234, np.nan, 0.7, 0.7], "clips": [3, 4, 5, -0.0], "note": list("abcd")}
    frame = pd.DataFrame(columns, ["<b>", "b", "c", "d"])
    plots.table(frame, "A table.", best=["F1"], key=True)
    content, metadata = shown[0]
    assert metadata == {"caption": "A table.", "key": True}
    assert content["text/html"].count("<strong>0.70</strong>") == 2
    assert Page(content["text/html"]).tags.count("strong") == 2
    rows = [line.split() for line in content["text/plain"].splitlines()]
    assert rows[:3] == [[*columns], ["<b>", "0.51", "3.00", "a"], ["b", "–", "4.00", "b"]]
    assert rows[4][2] == "0.00"  # not -0.00
    plots.table(frame.astype({"clips": int}), "Without its index.", index=False, digits=1)
    assert shown[2][0]["text/plain"].splitlines()[1].split() == ["0.5", "3", "a"]
    plots.table(pd.DataFrame({"long": ["x" * 300]}), "Long.", best=["long"])
    assert "x" * 300 in shown[4][0]["text/html"] and "strong" not in shown[4][0]["text/html"]


UNSURE = "not distinguishable (1 of 3)"
RESULTS = {
    "CNN mel accuracy": estimate(0.75),
    "LSTM mel accuracy": estimate(0.6),
    "CNN mel macro-F1": 0.7,
    "CNN mel - LSTM mel accuracy": difference(0.15, 0.1, 3),
    "CNN mel - SVM accuracy": difference(-0.001, 0.1, 1),
    "SVM - CNN mel accuracy": difference(-0.2, 0.1, 0),
}


def test_results_with_and_without_the_reference(shown):
    models, metrics = ["CNN mel", "LSTM mel"], ["accuracy", "macro-F1"]
    reference = {"LSTM mel accuracy": estimate(0.8), "other macro-F1": estimate(0.9)}
    plots.result_table(RESULTS, models, metrics, reference, "Results.", key=True)
    content, metadata = shown[0]
    best = re.findall("<strong>(.+?)</strong>", content["text/html"])
    assert metadata["key"] and best == ["0.75 [0.70, 0.80]", "0.70", "0.80 [0.75, 0.85]"]
    assert cells(content["text/html"]) == [
        ["accuracy", "accuracy, Emotify", "macro-F1"],
        ["CNN mel", "0.75 [0.70, 0.80]", "–", "0.70"],
        ["LSTM mel", "0.60 [0.55, 0.65]", "0.80 [0.75, 0.85]", "–"],
    ]
    for nothing in (None, {"other accuracy": 0.3}):
        plots.result_table(RESULTS, models, metrics, nothing, "Results.")
        assert "Emotify" not in shown[-2][0]["text/html"]


def test_comparisons_with_their_verdicts(shown):
    pairs = [("CNN mel", "LSTM mel"), ("CNN mel", "SVM"), ("SVM", "CNN mel"), ("A", "B")]
    reference = {"CNN mel - SVM accuracy": difference(0.3, 0.1, 3)}
    plots.comparison_table(RESULTS, pairs, "accuracy", reference, "Pairs.")
    verdict = "verdict (seeds ahead)"
    assert cells(shown[0][0]["text/html"]) == [
        ["accuracy", "accuracy, Emotify", verdict, f"{verdict}, Emotify"],
        ["CNN mel - LSTM mel", "+0.15 [+0.05, +0.25]", "–", "ahead (3 of 3)", "–"],
        ["CNN mel - SVM", "+0.00 [-0.10, +0.10]", "+0.30 [+0.20, +0.40]", UNSURE, "ahead (3 of 3)"],
        ["SVM - CNN mel", "-0.20 [-0.30, -0.10]", "–", "behind (0 of 3)", "–"],
        ["A - B", "–", "–", "–", "–"],
    ]  # fmt: skip


# --- sounds ---------------------------------------------------------------------------------------


def test_a_player_is_short_and_at_one_loudness(shown, tmp_path):
    soundfile.write(tmp_path / "a.wav", 0.1 * SOUND, SAMPLE_RATE)
    for audio in (3 * SOUND, tmp_path / "a.wav"):
        page, attributes = played(shown, audio)
        samples, rate = soundfile.read(decoded(attributes["src"]))
        assert rate == SAMPLE_RATE and len(samples) / rate == pytest.approx(1, abs=0.1)
        assert np.abs(samples).max() == pytest.approx(0.8, abs=0.05)
        assert page.tags == ["figure", "figcaption", "audio"] and page.text.strip() == "A tone."


def test_a_player_with_a_picture_knows_where_time_lies(shown):
    fig, axes = plt.subplots(2)
    for ax in axes:
        plots.plot_spectrogram(MEL, ax, colorbar=False)
    for S, columns in ((MEL, 43), (CHROMA, 43), (fig, 60)):
        page, attributes = played(shown, SOUND, S)
        assert page.tags == ["figure", "figcaption", "div", "img", "audio", "script"]
        left, width, top, height, begin, end = map(float, attributes["data-time"].split())
        assert 0 < left < left + width <= 1 and 0 <= top < top + height <= 1
        expected = np.array([-0.5, columns - 0.5]) / FRAME_RATE
        np.testing.assert_allclose([begin, end], expected, atol=0.01)
        picture = pixels(decoded(attributes["src"]))
        # The picture is coloured from `left` to `left + width` and nowhere else.
        coloured = np.flatnonzero((np.ptp(picture, axis=-1) > 40).mean(0) > 0.3)
        span = coloured[[0, -1]] / picture.shape[1]
        np.testing.assert_allclose(span, [left, left + width], atol=0.01)
    assert plt.get_fignums() == []


# --- hostile text ---------------------------------------------------------------------------------


def test_names_in_figures_are_never_formulas(shown):
    """In titles, tick labels and legends; nor does a script that no font has print a warning."""
    names, title = list(HOSTILE), HOSTILE[5]
    ones, lines = dict.fromkeys(names, 1), dict.fromkeys(names, HISTORY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for fig in (
            plots.plot_confusion(np.eye(len(names)), names, title=title).figure,
            plots.plot_class_counts(pd.Series(ones)).figure,
            plots.plot_histories(lines, lines=ones, score=title),
            plots.plot_forest(dict.fromkeys(names, estimate(0.5)), xlabel=title).figure,
        ):
            fig.set_layout_engine("none")  # so many long names leave no room
            fig.dpi = 40
            plots.show(fig, title)
            assert all(name in shown[-2][0]["text/plain"] for name in names)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_in_html_are_never_code(shown, name):
    """In captions, cells, headers, indices and alternative texts."""
    mpl.rcParams["figure.dpi"] = 40
    plots.table(pd.DataFrame({name: [name]}, [name]), name, best=[name])
    plots.result_table({f"{name} {name}": 0.5}, [name], [name], {}, name)
    plots.player(SOUND, name, CHROMA, seconds=0.5)
    known = "border class style data-time width alt src controls aria-label"
    for content, _ in shown:
        page = Page(content["text/html"])
        assert name in page.text and {"b", "a"}.isdisjoint(page.tags)
        assert name in content["text/plain"] or "\n" in content["text/plain"]
        for attribute, value in page.attributes:
            assert attribute in known.split() and (attribute != "src" or value.startswith("data:"))
        # A formula begins and ends in one piece of text.
        assert all(piece == "$" or "$" not in piece for piece in page.pieces)


def test_ticks_of_a_logarithmic_axis_stay_formulas(shown):
    fig, ax = plt.subplots()
    ax.loglog([1, 1e4], [1, 1e4])
    ax.set_title("$x")
    plots.show(fig, "Powers.")
    ticks = [text.get_parse_math() for text in ax.get_xticklabels() if text.get_text()]
    assert ticks and all(ticks) and not ax.title.get_parse_math()
