"""Tiny corpora in the lab's layout, made of shaped noise, for tests of what learns from them."""

import gzip
from pathlib import Path

import numpy as np

from labhelpers.clips import Reads
from labhelpers.corpus import AFFECT, Corpus
from labhelpers.models import CNN


def make_corpus(
    root, *, genres=("Rock", "Blues", "Jazz"), train=8, test=3, affect=(20, 6), tracks=1, seed=0
):
    """Write `train` and `test` clips for each genre and `affect` ones, with the lab's names.

    A genre is a loud band of the mel rows and one pitch class. Energy is the level, valence the
    band, danceability the strength of the chroma: both tasks can be learned. Clips differ in
    length. tracks : so many clips in a row share a track, in both tasks.
    """
    rng = np.random.default_rng(seed)
    root = Path(root)
    for beat in (False, True):
        frames = (5, 12) if beat else (20, 40)
        name = "beatsync.fused" if beat else "fused.full"
        folder = root / ("fma_genre_spectrograms_beat" if beat else "fma_genre_spectrograms")
        groups = ["Id\tGroup"]
        for split, count, first in (("train", train, 11), ("test", test, 501)):
            clips = [(first + i, genre) for i, genre in enumerate(np.repeat(genres, count))]
            suffix = name if split == "train" else "full.fused"
            lines = ["Id\tGenre", *(f"{clip}.{suffix}.npy.gz\t{genre}" for clip, genre in clips)]
            write_lines(folder / f"{split}_labels.txt", lines)
            groups += [f"{clip}\t{split}{(clip - first) // tracks}" for clip, _ in clips]
            for clip, genre in clips:
                place = genres.index(genre)
                array = noise(rng, rng.integers(*frames), 30 * place, -20, place, 0.9)
                save(folder / split / f"{clip}.fused.full.npy", array)
        write_lines(folder / "groups.txt", groups)
        folder = root / ("multitask_dataset_beat" if beat else "multitask_dataset")
        labels = np.random.default_rng(seed + 1).uniform(0.05, 0.95, (sum(affect), 3)).round(3)
        lines = [f"{i + 7},{v},{e},{d}" for i, (v, e, d) in enumerate(labels[: affect[0]])]
        write_lines(folder / "train_labels.txt", ["Id," + ",".join(AFFECT), *lines])
        groups = [f"{i + 7}\taffect{i // tracks}" for i in range(affect[0])]
        write_lines(folder / "groups.txt", ["Id\tGroup", *groups])
        for i, (valence, energy, dance) in enumerate(labels):
            array = noise(rng, rng.integers(*frames), int(98 * valence), 50 * energy - 70, 3, dance)
            split = "train" if i < affect[0] else "test"
            save(folder / split / f"{i + 7}.fused.full.npy", array)
    return Corpus(root)


def noise(rng, frames, band, level, pitch, strength):
    """(140, frames): 30 rows at `level` dB over a floor of -75, one chroma row at `strength`."""
    array = np.concatenate([rng.normal(-75, 1.5, (128, frames)), rng.uniform(0, 0.1, (12, frames))])
    end = min(band + 30, 128)
    array[band:end] = level + rng.normal(0, 2, (end - band, frames))
    array[128 + pitch] = strength
    array = np.concatenate([array[:128].clip(-80, 0), array[128:].clip(0, 1)])
    return array.astype(np.float32)


def save(path, array, gz=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    if gz:
        path = path.with_name(path.name + ".gz")
    with gzip.open(path, "wb") if gz else open(path, "wb") as stream:
        np.save(stream, array)
    return path


def small_cnn(window=16, dropout=0.0, **reads):
    pools = ((2, 4), (2, 4))
    reads = Reads("mel", window=window, **reads)
    return CNN(reads, channels=(4, 8), pools=pools, frames_per_column=1, dropout=dropout)


def watched(monkeypatch, owner, name, note):
    """Let owner.name note something at each call: note(result, *arguments). Returns the notes."""
    notes, real = [], getattr(owner, name)

    def call(*arguments, **options):
        result = real(*arguments, **options)
        notes.append(note(result, *arguments))
        return result

    monkeypatch.setattr(owner, name, call)
    return notes


def write_lines(path, lines, newline="\n", encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((newline.join(lines) + newline).encode(encoding))
    return path
