"""Figures. A `plot_` function draws one thing into `ax` (a new one if None) and returns the axes.

One colour map for dB (magma), one for chroma and shares (viridis), Okabe and Ito's colours for the
rest: all can be read by colour-blind eyes.
"""

from __future__ import annotations

import base64
import html
import io
import warnings

import librosa.display
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import soundfile
from IPython.display import display
from matplotlib.ticker import MaxNLocator
from PIL import Image

from .audio import HOP_LENGTH, SAMPLE_RATE

DB_MAP = "magma"
SHARE_MAP = "viridis"
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"]
HEAVY = 60_000  # bytes of a picture above which it makes do with fewer colours
SHARPNESS = 1.8  # pixels drawn for each pixel of the page: sharp on today's screens, and in print


def use_style() -> None:
    """Set the series' look; call once, with the imports. Notebook: all."""
    plt.rcParams.update(
        {
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.titlesize": 11,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": plt.cycler(color=COLOURS),
            "legend.frameon": False,
            "image.cmap": SHARE_MAP,
        }
    )
    pd.set_option("display.precision", 3)
    # tqdm, which librosa imports, asks for ipywidgets in red; nothing here draws its bars.
    warnings.filterwarnings("ignore", message="IProgress not found")


# --- showing --------------------------------------------------------------------------------------


def show(fig, caption: str, digits: int | None = 3, key: bool = False):
    """Display a figure with its caption, and close it. Notebook: all.

    digits : the output's text holds the numbers drawn, to so many significant digits, so that nbval
        compares figures too; None for a figure of results that differ between machines
    key : the figure that stands for its notebook in the short report
    """
    stream = io.BytesIO()
    fig.savefig(stream, format="png", bbox_inches="tight", dpi=SHARPNESS * fig.dpi)
    picture = Image.open(stream).convert("RGB")
    width = round(picture.width / SHARPNESS)
    encoded = base64.b64encode(_compressed(picture)).decode()
    image = {"alt": caption, "width": width}
    text = f"Figure: {caption}\n{drawn(fig, digits)}"
    display(
        {"image/png": encoded, "text/plain": text},
        metadata={"image/png": image, "caption": caption, "key": key},
        raw=True,
    )
    _show_caption("Figure", caption)
    plt.close(fig)


def _compressed(picture: Image.Image) -> bytes:
    """As PNG with colours of its own: a third of the bytes, and no eye sees it."""
    for colours in (256, 48):
        stream = io.BytesIO()
        few = picture.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(stream, "PNG", optimize=True)
        if stream.tell() < HEAVY:
            break
    return stream.getvalue()


def _show_caption(kind: str, caption: str) -> None:
    """The caption under a figure or table; pages, which number them, leave this output out."""
    text = f"*{kind}: {caption}*"
    display({"text/markdown": text, "text/plain": text}, metadata={"is_caption": True}, raw=True)


def drawn(fig, digits: int | None = 3) -> str:
    """What a figure shows, in words and numbers: a line for each thing drawn in each axes.

    digits : significant digits of the numbers; None leaves the numbers out
    Notebook: all.
    """
    lines = []
    for ax in fig.axes:
        lines.append(f"[{ax.get_title()}] x: {ax.get_xlabel()}, y: {ax.get_ylabel()}")
        for axis in (ax.xaxis, ax.yaxis):
            names = _tick_names(axis)
            if any(name[:1].isalpha() for name in names):  # else they are numbers
                lines.append(f"  ticks: {', '.join(names)}")
        for kind, values in _artists(ax):
            shape = "x".join(map(str, np.shape(values)))
            line = f"  {kind} {shape}"
            if digits is not None:
                line += _statistics(values, digits)
            lines.append(line)
    return "\n".join(lines)


def _tick_names(axis) -> list[str]:
    low, high = sorted(axis.get_view_interval())
    ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [tick.label1.get_text() for tick in ticks]


def _artists(ax):
    """Yield (kind, numbers) of what is drawn in an axes."""
    for line in ax.get_lines():
        yield _named("line", line), np.array(line.get_xydata(), float)
    for collection in ax.collections:
        array = collection.get_array()
        if array is None and hasattr(collection, "get_segments"):
            array = np.concatenate([[], *collection.get_segments()], axis=None)
        elif array is None:
            array = collection.get_offsets()
        yield _named(type(collection).__name__, collection), np.ma.filled(array, np.nan)
    for image in ax.get_images():
        yield "image", np.ma.filled(image.get_array(), np.nan)
    sizes = [
        [patch.get_width(), patch.get_height()]
        for patch in ax.patches
        if hasattr(patch, "get_width")
    ]
    if sizes:
        yield "bars", np.array(sizes, float)


def _named(kind: str, artist) -> str:
    """With the name that a legend gives it; matplotlib's own begin with an underscore."""
    name = str(artist.get_label())
    if not name or name.startswith("_"):
        return kind
    return f"{kind} ({name})"


def _statistics(values, digits: int) -> str:
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if values.size == 0:
        return ""
    # The last is a weighted sum: it changes when numbers change places, too.
    order = np.linspace(0.5, 1.5, values.size)
    numbers = [values.min(), values.mean(), values.max(), (values * order).mean()]
    # Rounded against the largest of them: what is nearly 0 by cancellation would not round alike.
    scale = max(map(abs, numbers)) or 1.0
    places = int(digits - 1 - np.floor(np.log10(scale)))
    words = [f"{round(number, places) + 0.0:.{max(places, 0)}f}" for number in numbers]
    return ": min {}, mean {}, max {}, weighted {}".format(*words)


def table(frame: pd.DataFrame, caption: str, best=(), digits: int = 3, index: bool = True) -> None:
    """Display a table with its caption. Notebook: all.

    best : a column, or several, whose largest value is set bold; digits : decimals of its numbers
    """
    text = frame.copy().astype(object)
    for name in frame:
        text[name] = [_cell(value, digits) for value in frame[name]]
    rich = text.map(html.escape)
    if isinstance(best, str):
        best = [best]
    for name in best:
        row = pd.to_numeric(frame[name], errors="coerce").argmax()
        column = rich.columns.get_loc(name)
        rich.iloc[row, column] = f"<strong>{rich.iloc[row, column]}</strong>"
    rich.index = rich.index.map(lambda label: html.escape(str(label)))
    page = rich.to_html(escape=False, index=index, border=0)
    data = {"text/html": page, "text/plain": text.to_string(index=index)}
    display(data, metadata={"caption": caption}, raw=True)
    _show_caption("Table", caption)


def _cell(value, digits: int) -> str:
    if not isinstance(value, (float, np.floating)):
        return str(value)
    if np.isnan(value):
        return "–"
    return f"{value:.{digits}f}"


def player(samples, caption: str, seconds: float = 5.0) -> None:
    """Display a player for the first `seconds` of samples (n,) at 22 050 Hz, as MP3 (35 kB).

    All are brought to one peak: spectrograms do not know how loud a clip was. Notebooks: 01, 03.
    """
    samples = np.asarray(samples)[: round(seconds * SAMPLE_RATE)]
    samples = 0.8 * samples / max(np.abs(samples).max(), 1e-9)
    stream = io.BytesIO()
    soundfile.write(stream, samples, SAMPLE_RATE, format="MP3")
    source = f"data:audio/mpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
    words = html.escape(caption)
    page = (
        f"<figure><figcaption>{words}</figcaption>"
        f'<audio controls src="{source}" aria-label="{words}"></audio></figure>'
    )
    display({"text/html": page, "text/plain": f"Sound: {caption}"}, raw=True)


# --- drawing --------------------------------------------------------------------------------------


def _axes(ax):
    if ax is None:
        _, ax = plt.subplots(figsize=(6, 3.5))
    return ax


def plot_spectrogram(
    S,
    ax=None,
    *,
    kind: str = "mel",
    beat_synced: bool = False,
    beats=None,
    title: str = "",
    colorbar: bool = True,
):
    """Draw a mel spectrogram (128, T) in dB or a chromagram (12, T). Notebooks: 01, 02, 03.

    kind : "mel" or "chroma"; beat_synced : columns are beats, not frames
    beats : frame numbers to mark as lines
    """
    ax = _axes(ax)
    looks = {
        "mel": {"cmap": DB_MAP, "vmin": -80, "vmax": 0, "fmax": SAMPLE_RATE / 2},
        "chroma": {"cmap": SHARE_MAP, "vmin": 0, "vmax": 1},
    }
    grid, xlabel = {"sr": SAMPLE_RATE, "hop_length": HOP_LENGTH, "x_axis": "time"}, "time (s)"
    if beat_synced:
        grid, xlabel = {}, "beat number"
    # A writable copy: librosa 0.11 has crashed on read-only arrays.
    picture = librosa.display.specshow(np.array(S), y_axis=kind, ax=ax, **looks[kind], **grid)
    names = {"mel": "frequency (Hz, mel scale)", "chroma": "pitch class"}
    ax.set(title=title, xlabel=xlabel, ylabel=names[kind])
    if beat_synced:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if beats is not None:
        seconds = np.asarray(beats) * HOP_LENGTH / SAMPLE_RATE
        ax.vlines(seconds, *ax.get_ylim(), color="white", linewidth=0.7, linestyle="--", alpha=0.8)
    if colorbar:
        form, label = {
            "mel": ("%+.0f dB", "level against the clip's maximum"),
            "chroma": ("%.1f", "strength"),
        }[kind]
        ax.figure.colorbar(picture, ax=ax, format=form).set_label(label)
    return ax


def plot_class_counts(counts: pd.Series, ax=None, *, title: str = "", colours=None):
    """Draw the number of clips of each class as bars, in the order of `counts`. Notebook: 04."""
    ax = _axes(ax)
    if colours is None:
        colours = [COLOURS[0]] * len(counts)
    bars = ax.barh(counts.index[::-1], counts.to_numpy()[::-1], color=list(colours)[::-1])
    ax.bar_label(bars, padding=2, fontsize=8)
    ax.set(title=title, xlabel="clips")
    ax.margins(x=0.12)
    return ax


def plot_history(epochs, ax=None, *, title: str = "", best_epoch: int | None = None):
    """Draw training and validation loss (left axis) and the validation score (right axis).

    epochs : `History.epochs`, a dict an epoch; best_epoch : is marked. Notebooks: 05, 07, 08.
    """
    ax = _axes(ax)
    history = pd.DataFrame(epochs)
    ax.plot(history["epoch"], history["train_loss"], color=COLOURS[0], label="training loss")
    ax.set(xlabel="epoch", ylabel="loss")
    ax.set_title(title, pad=24)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if "val_loss" in history:
        ax.plot(history["epoch"], history["val_loss"], color=COLOURS[1], label="validation loss")
        right = ax.twinx()
        score = history["val_score"]
        right.plot(
            history["epoch"], score, color=COLOURS[2], linestyle=":", label="validation score"
        )
        right.set(ylabel="score", ylim=(min(0, score.min()), 1))
        right.spines["right"].set_visible(True)
        lines = ax.get_lines() + right.get_lines()
        # Above the axes: somewhere within, it would lie on one curve or another.
        place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "ncols": 3, "columnspacing": 1}
        ax.legend(lines, [line.get_label() for line in lines], fontsize=8, **place)
    if best_epoch:
        ax.axvline(best_epoch, color="0.6", linewidth=1, linestyle="--")
    return ax


def plot_confusion(confusion: np.ndarray, classes: list[str], ax=None, *, title: str = ""):
    """Draw a confusion matrix, rows true, coloured by the share of each true class. Notebook: 06.

    confusion : (n_classes, n_classes) counts, which are written in
    """
    ax = _axes(ax)
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    sns.heatmap(
        shares,
        annot=confusion,
        fmt="d",
        ax=ax,
        cmap=SHARE_MAP,
        vmin=0,
        vmax=1,
        xticklabels=classes,
        yticklabels=classes,
        square=True,
        cbar_kws={"label": "share of the true class", "shrink": 0.8},
        annot_kws={"fontsize": 8},
    )
    ax.set(title=title, xlabel="predicted class", ylabel="true class")
    ax.tick_params(axis="x", rotation=45)
    ax.tick_params(axis="y", rotation=0)
    plt.setp(ax.get_xticklabels(), ha="right", rotation_mode="anchor")
    return ax


def plot_forest(
    estimates: pd.DataFrame, ax=None, *, title: str = "", xlabel: str = "", reference=None
):
    """Draw values with their intervals, a line each. Notebooks: 06 to 10.

    estimates : columns label, value, low, high, top to bottom; reference : a value to mark
    """
    ax = _axes(ax)
    places = np.arange(len(estimates))[::-1]
    values = estimates["value"].to_numpy()
    errors = np.abs(estimates[["low", "high"]].to_numpy().T - values)
    look = {"fmt": "o", "color": COLOURS[0], "ecolor": "0.5", "capsize": 3, "markersize": 5}
    ax.errorbar(values, places, xerr=errors, **look)
    ax.set(title=title, xlabel=xlabel, ylim=(-0.6, len(estimates) - 0.4))
    ax.set_yticks(places, estimates["label"])
    if reference is not None:
        ax.axvline(reference, color="0.6", linestyle="--", linewidth=1)
    return ax


def plot_scatter(y, pred, ax=None, *, title: str = "", axis: str = "value"):
    """Draw predicted against true values of one affect axis, 0 to 1. Notebook: 08."""
    ax = _axes(ax)
    ax.plot([0, 1], [0, 1], color="0.7", linewidth=1, zorder=0)
    ax.scatter(y, pred, s=14, alpha=0.7, color=COLOURS[0], linewidths=0)
    ax.set(xlabel=f"true {axis}", ylabel=f"predicted {axis}", title=title)
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    return ax


def plot_maps(
    maps,
    *,
    columns: int = 8,
    titles=None,
    cmap: str = SHARE_MAP,
    suptitle: str = "",
    size: float = 1.3,
    aspect: float = 1.0,
    limits=(None, None),
):
    """Draw a grid of small images (n, H, W), origin at the lower left; returns the figure.

    size : height of an image in inches; aspect : its width over its height
    limits : smallest and largest value of one colour scale for all; None takes each image's own
    Notebook: 07.
    """
    rows = -(-len(maps) // columns)
    shape = (columns * size * aspect, rows * size + 0.4)
    fig, grid = plt.subplots(rows, columns, figsize=shape, squeeze=False)
    for ax in grid.flat:
        ax.axis("off")
    for i, (ax, image) in enumerate(zip(grid.flat, maps, strict=False)):
        low, high = limits
        ax.imshow(image, cmap=cmap, origin="lower", aspect="auto", vmin=low, vmax=high)
        if titles is not None:
            ax.set_title(titles[i], fontsize=8)
    fig.suptitle(suptitle, fontsize=11)
    return fig
