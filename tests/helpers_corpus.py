"""Tiny corpora in the lab's layout, made of shaped noise, for tests of what learns from them."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from labhelpers.corpora.layout import AFFECT, Corpus

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def make_corpus(
    root,
    *,
    genres=("Rock", "Blues", "Jazz"),
    train=8,
    test=3,
    affect=(20, 6),
    frames=(20, 40),
    gz=False,
    dtype=np.float32,
    seed=0,
):
    """Write `train` and `test` clips a genre and `affect` ones, with the lab's names; the Corpus.

    A genre is a loud band of the mel rows and one pitch class. Energy is the level, valence the
    band, danceability the strength of the chroma, so that both tasks can be learned.
    """
    rng = np.random.default_rng(seed)
    root = Path(root)
    for beat in (False, True):
        spread = (5, 12) if beat else frames
        name = "beatsync.fused" if beat else "fused.full"
        folder = root / ("fma_genre_spectrograms_beat" if beat else "fma_genre_spectrograms")
        for split, count, first in (("train", train, 11), ("test", test, 501)):
            clips = [(first + i, genre) for i, genre in enumerate(np.repeat(genres, count))]
            suffix = name if split == "train" else "full.fused"
            lines = ["Id\tGenre", *(f"{clip}.{suffix}.npy.gz\t{genre}" for clip, genre in clips)]
            write_lines(folder / f"{split}_labels.txt", lines)
            for clip, genre in clips:
                place = genres.index(genre)
                array = noise(rng, rng.integers(*spread), 30 * place, -20, place, 0.9)
                save(folder / split / f"{clip}.fused.full.npy", array.astype(dtype), gz)
        folder = root / ("multitask_dataset_beat" if beat else "multitask_dataset")
        labels = np.random.default_rng(seed + 1).uniform(0.05, 0.95, (sum(affect), 3)).round(3)
        lines = [f"{i + 7},{v},{e},{d}" for i, (v, e, d) in enumerate(labels[: affect[0]])]
        write_lines(folder / "train_labels.txt", ["Id," + ",".join(AFFECT), *lines])
        for i, (valence, energy, dance) in enumerate(labels):
            length = rng.integers(*spread)
            array = noise(rng, length, int(100 * valence), 50 * energy - 70, 3, dance)
            split = "train" if i < affect[0] else "test"
            save(folder / split / f"{i + 7}.fused.full.npy", array.astype(dtype), gz)
    return Corpus(root)


def noise(rng, frames, band, level, pitch, strength):
    """(140, frames): 30 rows at `level` dB over a floor of -75, one chroma row at `strength`."""
    array = np.concatenate([rng.normal(-75, 1.5, (128, frames)), rng.uniform(0, 0.1, (12, frames))])
    end = min(band + 30, 128)
    array[band:end] = level + rng.normal(0, 2, (end - band, frames))
    array[128 + pitch] = strength
    return np.concatenate([array[:128].clip(-80, 0), array[128:].clip(0, 1)])


def save(path, array, gz=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    if gz:
        path = path.with_name(path.name + ".gz")
    with gzip.open(path, "wb") if gz else open(path, "wb") as stream:
        np.save(stream, array)
    return path


def write_lines(path, lines, newline="\n", encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((newline.join(lines) + newline).encode(encoding))
    return path


def change_line(path, number, text):
    """Replace line `number` (from 1) of a text file."""
    lines = path.read_text().splitlines()
    lines[number - 1] = text
    return write_lines(path, lines)


def real_music():
    """The folder with real music, or skip the test."""
    data = Path(os.environ.get("LABHELPERS_TEST_DATA", SHARED))
    if not (data / "emotify").is_dir():
        pytest.skip(f"no real music at {data} (LABHELPERS_TEST_DATA names the folder of emotify/)")
    return data
