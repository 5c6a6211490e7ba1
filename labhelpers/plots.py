"""Figures, tables and sounds. A `plot_` function draws one thing into `ax` (a new one if None).

One colour map for dB (magma), one for chroma and shares (viridis), the colours of Okabe and Ito for
the rest: colour-blind eyes can tell them apart. Text that comes from a corpus, such as a genre's
name, is never read as HTML, Markdown or a formula.
"""

from __future__ import annotations

import base64
import html
import io
import warnings
from pathlib import Path

import librosa
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import soundfile
from IPython.display import display
from matplotlib import font_manager
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox
from PIL import Image

from .audio import FRAME_RATE, N_CHROMA, SAMPLE_RATE, load_audio

DB_MAP, SHARE_MAP = "magma", "viridis"
STYLE = mpl.rc_params_from_file(Path(__file__).with_name("series.mplstyle"), False, False)
COLOURS = STYLE["axes.prop_cycle"].by_key()["color"]
GREY = "0.6"
REFERENCE = "Emotify"  # the corpus whose results stand beside this run's
SHARPNESS = 1.8  # pixels drawn for each pixel of the page: sharp on screens and in print
# Those that are installed are used: Latin, Greek, Cyrillic; then Chinese, Japanese, Korean.
FONTS = ("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Arial Unicode MS")
PITCHES = ("C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B")
FREQUENCIES = (512, 1024, 2048, 4096, 8192)  # Hz, marked on the mel axis


def use_style() -> None:
    """Set the series' look, whatever a user's matplotlibrc says. Notebook: all."""
    mpl.rcdefaults()
    plt.rcParams.update(STYLE)
    installed = set(font_manager.get_font_names())
    plt.rcParams["font.family"] = [font for font in FONTS if font in installed]
    # librosa imports tqdm, which asks for ipywidgets in red. Nothing here draws tqdm's bars.
    warnings.filterwarnings("ignore", message="IProgress not found")


# --- showing --------------------------------------------------------------------------------------


def show(fig, caption: str, digits: int | None = 3, key: bool = False) -> None:
    """Display a figure with its caption, and close it. Notebook: all.

    digits : the output's text holds the numbers drawn, to so many significant digits, so that nbval
        compares figures too; None for a figure of numbers that differ between machines
    key : the figure stands for its notebook on the report's index
    """
    picture, width = _png(fig, bbox_inches="tight")
    content = {"image/png": picture, "text/plain": f"Figure: {caption}\n{drawn(fig, digits)}"}
    metadata = {"image/png": {"alt": caption, "width": width}, "caption": caption, "key": key}
    display(content, metadata=metadata, raw=True)
    _show_caption(f"Figure: {caption}")
    plt.close(fig)


def _show_caption(text):
    """The caption below a figure or table. Pages number them and leave this output out."""
    content = {"text/html": f"<p><em>{escaped(text)}</em></p>", "text/plain": text}
    display(content, metadata={"is_caption": True}, raw=True)


def escaped(text) -> str:
    """Text for HTML. A dollar sign in an element of its own begins no formula."""
    return html.escape(str(text)).replace("$", "<span>$</span>")


def _png(fig, **options):
    """A figure as PNG of 256 colours in base64, and its width on the page in pixels."""
    _write_ticks(fig)
    for text in fig.findobj(Text):  # a name with $ is no formula; a tick of a logarithmic axis is
        words = text.get_text()
        text.set_parse_math("$" not in words or "\\mathdefault" in words)
    stream, small = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # no font has that script
        fig.savefig(stream, format="png", dpi=SHARPNESS * fig.dpi, **options)
    picture = Image.open(stream).convert("RGB")
    picture = picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    picture.save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode(), round(picture.width / SHARPNESS)


def drawn(fig, digits: int | None = 3) -> str:
    """What a figure shows: for each axes its words, and a line for each thing drawn.

    digits : significant digits of the numbers; None leaves the numbers out
    """
    _write_ticks(fig)
    lines = []
    for part in [*fig.texts, *fig.legends, *fig.axes]:
        words = [text.get_text() for text in part.findobj(Text) if text.get_visible()]
        lines.append(" | ".join(word for word in words if any(map(str.isalpha, word))))
        if part.get_label() == "<colorbar>":  # which says nothing of the data
            continue
        for artist in part.get_children():
            values = _numbers(artist)
            if np.size(values) and artist is not getattr(part, "patch", None):
                shape = "x".join(map(str, np.shape(values)))
                lines.append(f"  {type(artist).__name__} {shape}{_statistics(values, digits)}")
    return "\n".join(lines)


def _write_ticks(fig):
    """Let the axes write their tick labels, which they else do when they are drawn."""
    for ax in fig.axes:
        ax.get_xticklabels()
        ax.get_yticklabels()


def _numbers(artist):
    """The coordinates or values of something drawn, if it has any."""
    if isinstance(artist, Rectangle):
        return artist.get_bbox().bounds
    if hasattr(artist, "get_xydata"):
        return artist.get_xydata()
    if not hasattr(artist, "get_array"):
        return ()
    values = artist.get_array()
    if values is None and hasattr(artist, "get_segments"):
        values = np.concatenate([[], *artist.get_segments()], axis=None)
    elif values is None:
        values = artist.get_offsets()
    return np.ma.filled(values, np.nan)


def _statistics(values, digits):
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if digits is None or values.size == 0:
        return ""
    numbers = {"min": values.min(), "mean": values.mean(), "max": values.max()}
    # A weighted mean changes when numbers change places, too.
    numbers["weighted"] = (values * np.linspace(0.5, 1.5, values.size)).mean()
    # Rounded against the largest of them: what is nearly 0 by cancellation would not round alike.
    largest = np.abs(list(numbers.values())).max()
    places = int(digits - 1 - np.floor(np.log10(largest or 1.0)))
    words = [f"{name} {_decimal(number, places)}" for name, number in numbers.items()]
    return ": " + ", ".join(words)


def table(frame, caption: str, best=(), digits: int = 2, index: bool = True, key: bool = False):
    """Display a table with its caption. Notebook: all.

    frame : a DataFrame of text, numbers, `metrics.Estimate` or `metrics.Difference`
    best : columns whose largest value is set bold; digits : decimals of numbers
    key : marks a table that an answer rests on; pages show it like any other
    """
    text = frame.astype(object).map(lambda value: _cell(value, digits))
    rich = text.map(escaped).rename(escaped).rename(escaped, axis="columns")
    for name in best:
        column = frame.columns.get_loc(name)
        values = [getattr(value, "value", value) for value in frame[name]]
        values = pd.Series(pd.to_numeric(values, errors="coerce"))
        for row in np.flatnonzero(values == values.max()):
            rich.iloc[row, column] = f"<strong>{rich.iloc[row, column]}</strong>"
    with pd.option_context("display.max_colwidth", None):
        page = rich.to_html(escape=False, index=index, border=0)
        content = {"text/html": page, "text/plain": text.to_string(index=index)}
    display(content, metadata={"caption": caption, "key": key}, raw=True)
    _show_caption(f"Table: {caption}")


def _cell(value, digits):
    if hasattr(value, "low"):
        sign = "+" if hasattr(value, "seeds_ahead") else ""  # of a Difference
        numbers = [value.value, value.low, value.high]
        return "{} [{}, {}]".format(*(_decimal(number, digits, sign) for number in numbers))
    if pd.isna(value):
        return "–"
    return _decimal(value, digits) if isinstance(value, (float, np.floating)) else str(value)


def _decimal(number, digits, sign=""):
    return f"{round(number, digits) + 0.0:{sign}.{max(digits, 0)}f}"  # + 0.0: no -0.00


def result_table(results, models, metrics, reference, caption: str, key: bool = False) -> None:
    """Display a row for each model: each metric of this run, and of the reference corpus.

    results, reference : "model metric" -> Estimate or number, as in a record; a column of which the
        reference knows nothing is left out
    Notebooks: 05 to 10.
    """
    columns = {}
    for metric in metrics:
        keys = [f"{model} {metric}" for model in models]
        columns |= _beside(metric, keys, results, reference)
    best = columns if len(models) > 1 else ()
    table(pd.DataFrame(columns, list(models), dtype=object), caption, best, key=key)


def comparison_table(results, pairs, metric, reference, caption: str, key: bool = False) -> None:
    """Display a row for each pair of models (a, b): a - b with its interval, and the verdict.

    results, reference : "a - b metric" -> Difference, as in a record. Notebooks: 05 to 10.
    """
    from .metrics import verdict  # brings scikit-learn, which notebooks 01 to 03 do without

    names = [f"{a} - {b}" for a, b in pairs]
    columns = _beside(metric, [f"{name} {metric}" for name in names], results, reference)
    for title, column in list(columns.items()):
        words = []
        for value in column:
            words.append(value and f"{verdict(value)} ({value.seeds_ahead} of {value.seeds})")
        columns[title.replace(metric, "verdict (seeds ahead)", 1)] = words
    table(pd.DataFrame(columns, names, dtype=object), caption, key=key)


def _beside(title, keys, results, reference):
    """Columns of this run's results and of the reference's; one that knows nothing is left out."""
    columns = {}
    for name, source in {title: results, f"{title}, {REFERENCE}": reference or {}}.items():
        values = [source.get(key) for key in keys]
        if any(value is not None for value in values):
            columns[name] = values
    return columns


PLAYER = """<figure class="player" data-time="{time}"><figcaption>{caption}</figcaption>{picture}
<audio controls src="data:audio/mpeg;base64,{sound}" aria-label="{alt}"></audio></figure>"""
PICTURE = """<div><img width="{width}" style="max-width:100%" alt="{alt}"
src="data:image/png;base64,{data}"></div>"""
# Puts a cursor on the picture of each player; a click into the picture seeks. Where scripts are
# barred, picture and sound stay.
SCRIPT = """<script>
for (const box of document.querySelectorAll("figure.player[data-time]:not([data-live])")) {
  box.dataset.live = "yes";
  const [audio, picture] = [box.querySelector("audio"), box.querySelector("img")];
  if (!picture) continue;
  const [left, width, top, height, begin, end] = box.dataset.time.split(" ").map(Number);
  const cursor = document.createElement("div");
  cursor.style = `position:absolute;top:${100 * top}%;height:${100 * height}%;width:2px;` +
    "background:#3CFF9E;pointer-events:none;display:none";
  picture.parentNode.style = "position:relative;display:inline-block";
  picture.parentNode.append(cursor);
  const move = () => {
    const share = (audio.currentTime - begin) / (end - begin);
    cursor.style.left = 100 * (left + width * share) + "%";
    cursor.style.display = share > 1 ? "none" : "block";
    if (!audio.paused) requestAnimationFrame(move);
  };
  audio.addEventListener("play", move);
  audio.addEventListener("seeked", move);
  picture.addEventListener("click", event => {
    const share = (event.offsetX / picture.clientWidth - left) / width;
    audio.currentTime = Math.max(0, begin + share * (end - begin));
  });
}
</script>"""


def player(audio, caption: str, S=None, beats=None, true_beats=None, seconds: float = 8.0) -> None:
    """Display a player of the first seconds of a sound, with a picture on which a cursor runs.

    audio : samples (n,) at 22,050 Hz, or a path; all are brought to one peak
    S : mel (128, T) in dB or chroma (12, T), whose beats are marked as in `plot_spectrogram`, or a
        figure with seconds on its x axes; None: no picture
    Notebooks: 01 to 03, 07.
    """
    samples = load_audio(audio) if isinstance(audio, (str, Path)) else audio
    samples = samples[: round(seconds * SAMPLE_RATE)]
    loudness = 0.8 / max(np.abs(samples).max(initial=0), 1e-9)
    stream = io.BytesIO()
    soundfile.write(stream, loudness * samples, SAMPLE_RATE, format="MP3")
    sound = base64.b64encode(stream.getvalue()).decode()
    alt = html.escape(caption)
    time = picture = script = ""
    if S is not None:
        if not hasattr(S, "savefig"):
            ax = plt.subplots(figsize=(8, 3))[1]
            S = S[:, : round(seconds * FRAME_RATE)]
            plot_spectrogram(S, ax, beats=beats, true_beats=true_beats, colorbar=False)
            S = ax.figure
        data, width = _png(S)
        picture = PICTURE.format(width=width, alt=alt, data=data)
        time, script = _time_of(S), SCRIPT
        plt.close(S)
    words = {"caption": escaped(caption), "alt": alt, "sound": sound}
    page = PLAYER.format(time=time, picture=picture, **words) + script
    content = {"text/html": page, "text/plain": f"Sound: {caption}"}
    display(content, metadata={"caption": caption}, raw=True)


def _time_of(fig):
    """Where time lies on a figure: left, width, top, height (shares of it), begin, end (s)."""
    begin, end = fig.axes[0].get_xlim()
    boxes = [ax.get_position() for ax in fig.axes if ax.get_xlim() == (begin, end)]
    box = Bbox.union(boxes)
    place = [box.x0, box.width, 1 - box.y1, box.height, begin, end]
    return " ".join(f"{number:.4f}" for number in place)


# --- drawing --------------------------------------------------------------------------------------


def _axes(ax, size=(6, 3.5)):
    return ax or plt.subplots(figsize=size)[1]


def plot_spectrogram(
    S, ax=None, *, beats=None, true_beats=None, beat_synced=False, title="", colorbar=True
):
    """Draw a mel spectrogram (128, T) in dB or a chromagram (12, T). Notebooks: 01 to 03, 07.

    beats, true_beats : frame numbers of tracked and of true beats, marked as lines
    beat_synced : the columns are beats. With `beats`, each is drawn as wide as it lasts; else all
        alike. The last column lasts as long as most, or until a further number in `beats`.
    """
    ax = _axes(ax)
    rows, columns = np.shape(S)
    edges, xlabel = (np.arange(columns + 1) - 0.5) / FRAME_RATE, "time (s)"
    if beat_synced and beats is None:
        edges, xlabel = np.arange(columns + 1), "beat number"
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    elif beat_synced:
        edges, beats = _beat_edges(beats, columns) / FRAME_RATE, None
    if rows == N_CHROMA:
        heights = np.arange(13) - 0.5
        picture = ax.pcolormesh(edges, heights, S, cmap=SHARE_MAP, vmin=0, vmax=1)
        ax.set_yticks(range(N_CHROMA), PITCHES, fontsize=8)
        ylabel, scale = "pitch class", {"format": "%.1f", "label": "strength"}
    else:
        # A row's filter peaks amid its two edges.
        mel = (np.arange(rows + 1) + 0.5) * librosa.hz_to_mel(SAMPLE_RATE / 2) / (rows + 1)
        heights = librosa.mel_to_hz(mel)
        picture = ax.pcolormesh(edges, heights, S, cmap=DB_MAP, vmin=-80, vmax=0)
        ax.set_yscale("function", functions=(librosa.hz_to_mel, librosa.mel_to_hz))
        ax.set(yticks=FREQUENCIES, ylim=(heights[0], heights[-1]))
        ylabel, scale = "frequency (Hz)", {"format": "%.0f dB", "label": "level"}
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel, xlim=(edges[0], edges[-1]))
    _mark_beats(ax, beats, true_beats)
    if colorbar:
        ax.figure.colorbar(picture, ax=ax, **scale)
    return ax


def _beat_edges(beats, columns):
    """Frames where the columns of a beat-synced array begin and end (columns + 1,)."""
    edges = np.unique([0, *beats])
    if len(edges) == columns:
        edges = np.append(edges, edges[-1] + np.median(np.diff(edges)))
    if len(edges) != columns + 1:
        raise ValueError(f"{columns} columns do not fit {len(beats)} beats; give this clip's beats")
    return edges


def _mark_beats(ax, beats, true_beats):
    """Tracked beats as white lines, true ones below them in blue."""
    lines = [("tracked beats", beats, "white"), ("true beats", true_beats, COLOURS[5])]
    lines = [line for line in lines if line[1] is not None]
    if not lines:
        return
    ends = np.linspace(1, 0, len(lines) + 1)
    begin, end = ax.get_xlim()
    for i, (name, frames, colour) in enumerate(lines):
        times = np.divide(frames, FRAME_RATE)
        times = times[(times >= begin) & (times <= end)]
        look = {"color": colour, "linewidth": 1.2, "transform": ax.get_xaxis_transform()}
        ax.vlines(times, ends[i + 1], ends[i], label=name, **look)
    look = {"frameon": True, "facecolor": "0.2", "labelcolor": "white", "fontsize": 8}
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2, **look)


def plot_class_counts(counts: pd.Series, ax=None, *, title="", colours=COLOURS[0]):
    """Draw the number of clips of each class as bars, from top to bottom. Notebook: 04."""
    ax, places = _axes(ax), range(len(counts))
    bars = ax.barh(places, counts, color=colours)
    ax.bar_label(bars, padding=2, fontsize=8)
    ax.set_yticks(places, counts.index)
    ax.set(title=title, xlabel="clips")
    ax.invert_yaxis()
    ax.margins(x=0.12)
    return ax


def plot_histories(histories: dict, *, lines: dict | None = None, score: str = ""):
    """Draw the losses of trainings, two panels in a row on one scale; returns the figure.

    histories : name -> rows of `training.fit`; lines : name -> loss to compare with, such as ln n
    score : name of the validation score, which gets a panel of its own; "" leaves it out
    Notebooks: 05, 07, 08, 09b.
    """
    panels = len(histories) + bool(score)
    columns, rows = min(2, panels), -(-panels // 2)
    fig = plt.figure(figsize=(4.2 * columns, 2.6 * rows + 0.4))
    first = None
    for i, (name, history) in enumerate(histories.items(), start=1):
        history = pd.DataFrame(history).set_index("epoch")
        ax = fig.add_subplot(rows, columns, i, sharey=first)
        first = first or ax
        ax.plot(history["train_loss"], color=COLOURS[0], label="training loss")
        if "val_loss" in history:
            watched = history["val_loss"].dropna()
            ax.plot(watched, color=COLOURS[1], marker=".", label="validation loss")
        for label, value in (lines or {}).items():
            ax.axhline(value, color=GREY, linestyle="--", linewidth=1, label=label)
        ax.set(title=name, xlabel="epoch", ylabel="loss")
    fig.legend(*first.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    if score:
        ax = fig.add_subplot(rows, columns, panels)
        for name, history in histories.items():
            history = pd.DataFrame(history).set_index("epoch")
            ax.plot(history["val_score"].dropna(), marker=".", label=name)
        ax.set(title="validation", xlabel="epoch", ylabel=score)
        ax.legend(fontsize=8)
    for ax in fig.axes:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return fig


def plot_confusion(confusion: np.ndarray, classes: list[str], ax=None, *, title=""):
    """Draw a confusion matrix, rows true, coloured by the share of each true class. Notebook: 06.

    confusion : (n_classes, n_classes) counts, which are written in; zeros stay empty
    """
    ax, places = _axes(ax, (6, 5)), range(len(classes))
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    picture = ax.imshow(shares, cmap=SHARE_MAP, vmin=0, vmax=1)
    look = {"ha": "center", "va": "center", "fontsize": 8}
    for row, column in np.argwhere(confusion):
        colour = "black" if shares[row, column] > 0.6 else "white"
        ax.text(column, row, f"{confusion[row, column]:.0f}", color=colour, **look)
    ax.set_xticks(places, classes, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(places, classes)
    ax.set(title=title, xlabel="predicted class", ylabel="true class")
    ax.figure.colorbar(picture, ax=ax, label="share of the true class", shrink=0.8)
    return ax


def plot_forest(estimates: dict, ax=None, *, reference=None, title="", xlabel=""):
    """Draw values with their intervals, the largest at the top. Notebook: 05.

    estimates : label -> Estimate or Difference
    reference : label -> the same on the reference corpus, drawn below each
    """
    ax = _axes(ax, (6, 0.8 + 0.35 * len(estimates)))
    labels = sorted(estimates, key=lambda label: estimates[label].value)
    kinds = {}
    for place, label in enumerate(labels):
        look = {"color": COLOURS[0], "fmt": "o"}
        kinds["network"] = _interval(ax, place, estimates[label], look)
        if label in (reference or {}):
            look = {"color": GREY, "fmt": "D"}
            kinds[REFERENCE] = _interval(ax, place - 0.25, reference[label], look)
    if len(kinds) > 1:
        ax.legend(list(kinds.values()), list(kinds), fontsize=8, loc="lower right")
    ax.set_yticks(range(len(labels)), labels)
    ax.set(title=title, xlabel=xlabel, ylim=(-0.6, len(labels) - 0.4))
    return ax


def _interval(ax, place, estimate, look):
    ends = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
    return ax.errorbar(estimate.value, place, xerr=ends, markersize=5, **look)


def plot_scatter(y, pred, ax=None, *, title="", axis="value"):
    """Draw predicted against true values of one affect axis, 0 to 1. Notebook: 08."""
    ax = _axes(ax, (3.6, 3.6))
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, zorder=0)
    ax.scatter(y, pred, s=14, alpha=0.7, color=COLOURS[0], linewidths=0)
    ax.set(xlabel=f"true {axis}", ylabel=f"predicted {axis}", title=title)
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    return ax
