"""Figures. Each function draws one thing into `ax` (a new one if None) and returns the axes; the notebook arranges.

One colour map for dB (magma), one for chroma and shares (viridis), Okabe and Ito's colours for the rest: all can be
read by colour-blind eyes.
"""

from __future__ import annotations

import base64
import html
import io

import librosa.display
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import soundfile
from matplotlib.ticker import MaxNLocator
from PIL import Image

from .audio import HOP_LENGTH, SAMPLE_RATE

DB_MAP, SHARE_MAP = "magma", "viridis"
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"]


def use_style() -> None:
    """The series' look: call once at the top of a notebook."""
    plt.rcParams.update({
        "figure.dpi": 100, "figure.constrained_layout.use": True, "font.size": 10, "axes.titlesize": 11,
        "axes.spines.top": False, "axes.spines.right": False, "axes.prop_cycle": plt.cycler(color=COLOURS),
        "legend.frameon": False, "image.cmap": SHARE_MAP,
    })  # fmt: skip
    pd.set_option("display.precision", 3)


def show(fig, alt: str) -> None:
    """Display a figure with alternative text for those who cannot see it, and close it."""
    from IPython.display import display

    stream, small = io.BytesIO(), io.BytesIO()
    fig.savefig(stream, format="png", bbox_inches="tight")
    # 256 colours of its own: a spectrogram takes a third of the bytes, and no eye sees it.
    Image.open(stream).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(small, "PNG", optimize=True)
    data = {"image/png": base64.b64encode(small.getvalue()).decode(), "text/plain": repr(fig)}
    display(data, metadata={"image/png": {"alt": alt}}, raw=True)
    plt.close(fig)


def player(samples, caption: str, seconds: float = 5.0) -> None:
    """Display a small audio player for the first `seconds` of samples (n,) at 22 050 Hz, as MP3 (35 kB).

    Levels are brought to the same peak: spectrograms do not know how loud a clip was.
    """
    from IPython.display import display

    samples = np.asarray(samples)[: round(seconds * SAMPLE_RATE)]
    stream = io.BytesIO()
    soundfile.write(stream, 0.8 * samples / max(np.abs(samples).max(), 1e-9), SAMPLE_RATE, format="MP3")
    source = f"data:audio/mpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
    page = f'<figure><figcaption>{html.escape(caption)}</figcaption><audio controls src="{source}"></audio></figure>'
    display({"text/html": page, "text/plain": f"Sound: {caption}"}, raw=True)


def _axes(ax):
    return plt.subplots(figsize=(6, 3.5))[1] if ax is None else ax


def plot_spectrogram(
    S, ax=None, *, kind: str = "mel", beat_synced: bool = False, beats=None, title: str = "", colorbar: bool = True
):
    """A mel spectrogram (128, T) in dB or a chromagram (12, T).

    kind : "mel" or "chroma"; beat_synced : columns are beats, not frames; beats : frame numbers to mark as lines
    """
    ax = _axes(ax)
    grid = {} if beat_synced else {"sr": SAMPLE_RATE, "hop_length": HOP_LENGTH, "x_axis": "time"}
    limits = {"vmin": -80, "vmax": 0} if kind == "mel" else {"vmin": 0, "vmax": 1}
    colours = DB_MAP if kind == "mel" else SHARE_MAP
    # A writable copy: librosa 0.11 has crashed on read-only arrays.
    picture = librosa.display.specshow(
        np.array(S), y_axis=kind, ax=ax, cmap=colours, fmax=SAMPLE_RATE / 2 if kind == "mel" else None, **limits, **grid
    )
    ax.set(
        title=title,
        xlabel="beat number" if beat_synced else "time (s)",
        ylabel="frequency (Hz, mel scale)" if kind == "mel" else "pitch class",
    )
    if beat_synced:
        ax.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    if beats is not None:
        ax.vlines(
            np.asarray(beats) * HOP_LENGTH / SAMPLE_RATE,
            *ax.get_ylim(),
            color="white",
            linewidth=0.7,
            linestyle="--",
            alpha=0.8,
        )
    if colorbar:
        bar = ax.figure.colorbar(picture, ax=ax, format="%+.0f dB" if kind == "mel" else "%.1f")
        bar.set_label("level against the clip's maximum" if kind == "mel" else "strength")
    return ax


def plot_class_counts(counts: pd.Series, ax=None, *, title: str = "", colours=None):
    """Bars with the number of clips of each class; counts : index names, in the order to draw."""
    ax = _axes(ax)
    bars = ax.barh(counts.index[::-1], counts.to_numpy()[::-1], color=COLOURS[0] if colours is None else colours[::-1])
    ax.bar_label(bars, padding=2, fontsize=8)
    ax.set(title=title, xlabel="clips")
    ax.margins(x=0.12)
    return ax


def plot_history(rows, ax=None, *, title: str = "", best_epoch: int | None = None):
    """Training and validation loss over the epochs (left axis) and the validation score (right axis)."""
    ax, table = _axes(ax), pd.DataFrame(rows)
    ax.plot(table["epoch"], table["train_loss"], color=COLOURS[0], label="training loss")
    ax.set(xlabel="epoch", ylabel="loss")
    ax.set_title(title, pad=24)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if "val_loss" in table:
        ax.plot(table["epoch"], table["val_loss"], color=COLOURS[1], label="validation loss")
        right = ax.twinx()
        right.plot(table["epoch"], table["val_score"], color=COLOURS[2], linestyle=":", label="validation score")
        right.set(ylabel="score", ylim=(min(0, table["val_score"].min()), 1))
        right.spines["right"].set_visible(True)
        lines = ax.get_lines() + right.get_lines()
        names = [line.get_label() for line in lines]
        # Above the axes: somewhere within, it would lie on one curve or another.
        ax.legend(lines, names, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, columnspacing=1)
    if best_epoch:
        ax.axvline(best_epoch, color="0.6", linewidth=1, linestyle="--")
    return ax


def plot_confusion(confusion: np.ndarray, classes: list[str], ax=None, *, title: str = ""):
    """Confusion matrix, rows true, coloured by the share of each true class, with counts written in."""
    ax = _axes(ax)
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    sns.heatmap(
        shares, annot=confusion, fmt="d", ax=ax, cmap=SHARE_MAP, vmin=0, vmax=1,
        xticklabels=classes, yticklabels=classes,
        square=True, cbar_kws={"label": "share of the true class"}, annot_kws={"fontsize": 8},
    )  # fmt: skip
    ax.set(title=title, xlabel="predicted class", ylabel="true class")
    ax.tick_params(axis="x", rotation=45)
    ax.tick_params(axis="y", rotation=0)
    plt.setp(ax.get_xticklabels(), ha="right", rotation_mode="anchor")
    return ax


def plot_forest(rows: pd.DataFrame, ax=None, *, title: str = "", xlabel: str = "", reference: float | None = None):
    """Values with their intervals, one line a row; rows : columns label, value, low, high, top to bottom."""
    ax = _axes(ax)
    places = np.arange(len(rows))[::-1]
    errors = np.abs(rows[["low", "high"]].to_numpy().T - rows["value"].to_numpy())
    ax.errorbar(rows["value"], places, xerr=errors, fmt="o", color=COLOURS[0], ecolor="0.5", capsize=3, markersize=5)
    ax.set(title=title, xlabel=xlabel, yticks=places, yticklabels=rows["label"], ylim=(-0.6, len(rows) - 0.4))
    if reference is not None:
        ax.axvline(reference, color="0.6", linestyle="--", linewidth=1)
    return ax


def plot_scatter(y, pred, ax=None, *, title: str = "", axis: str = "value"):
    """Predicted against true values of one affect axis, both 0 to 1, with the diagonal."""
    ax = _axes(ax)
    ax.plot([0, 1], [0, 1], color="0.7", linewidth=1, zorder=0)
    ax.scatter(y, pred, s=14, alpha=0.7, color=COLOURS[0], linewidths=0)
    ax.set(title=title, xlabel=f"true {axis}", ylabel=f"predicted {axis}", xlim=(0, 1), ylim=(0, 1), aspect="equal")
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
):
    """A grid of small images (n, H, W), drawn with the origin at the lower left; returns the figure.

    aspect : width of one image over its height
    """
    rows = -(-len(maps) // columns)
    fig, grid = plt.subplots(rows, columns, figsize=(columns * size * aspect, rows * size + 0.4), squeeze=False)
    for ax in grid.flat:
        ax.axis("off")
    for i, (ax, image) in enumerate(zip(grid.flat, maps)):
        ax.imshow(image, cmap=cmap, origin="lower", aspect="auto")
        if titles is not None:
            ax.set_title(titles[i], fontsize=8)
    fig.suptitle(suptitle, fontsize=11)
    return fig
