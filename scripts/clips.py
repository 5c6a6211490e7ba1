"""The test clips of step 7 for a page: where each lies, what it was taken for, how it sounds."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import soundfile
from matplotlib import colormaps
from PIL import Image

from labhelpers.audio import FRAME_RATE, N_MELS, SAMPLE_RATE, AudioError, load_audio
from labhelpers.corpus import Corpus, CorpusError, load_array
from labhelpers.records import RunError

NOTEBOOK, MODEL, CLIPS = "07_cnn", "CNN mel", "genre test"
SECONDS = 5  # of a clip, from its middle
SIZE = (240, 96)  # pixels of a spectrogram
ROOM = 6_000_000  # bytes of sounds in the page; mistakes come first, the rest as far as it goes


def clips_of(runs: dict, root: str) -> dict | None:
    """What the page of clips shows, as JSON values; None where there is nothing to show.

    runs : notebook -> Run; root : the corpus's folder, which need not be there
    """
    if NOTEBOOK not in runs or not root or not Path(root).is_dir():
        return None
    corpus = Corpus(Path(root))
    try:
        ids, seeds = runs[NOTEBOOK].predictions(MODEL, CLIPS)
        table = corpus.labels("genre", "test").set_index("id")
        training = corpus.labels("genre", "train")
    except (RunError, CorpusError):
        return None
    genres = table["genre"].map(corpus.mapping)
    classes = sorted(set(training["genre"].map(corpus.mapping).dropna()))
    shares = np.mean(seeds, axis=0)  # (N, classes)
    if shares.shape != (len(ids), len(classes)) or not set(ids) <= set(genres.dropna().index):
        return None
    places = spread(np.log(shares + 1e-3))
    clips = []
    for clip, place, share in zip(ids, places, shares):
        clips.append(
            {
                "id": clip,
                "x": round(float(place[0]), 4),
                "y": round(float(place[1]), 4),
                "genre": genres[clip],
                "guess": classes[int(share.argmax())],
                "shares": [round(float(value), 2) for value in share],
                "picture": picture(table["path"][clip]),
            }
        )
    sounds = add_sounds(clips, corpus)
    return {"classes": classes, "clips": clips, "model": MODEL, "sounds": sounds}


def spread(values: np.ndarray) -> np.ndarray:
    """(N, k) -> (N, 2) from 0 to 1: positions on the two main axes."""
    centred = values - values.mean(0)
    places = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    low, high = places.min(0), places.max(0)
    return (places - low) / np.maximum(high - low, 1e-9)


def picture(path: Path) -> str:
    """The middle of a clip's mel spectrogram as a small JPEG; empty where it cannot be read."""
    try:
        mel = load_array(path)[:N_MELS][::-1]  # low notes below
    except CorpusError as error:
        print(error)
        return ""
    frames = min(mel.shape[1], round(SECONDS * FRAME_RATE))
    start = (mel.shape[1] - frames) // 2
    mel = mel[:, start : start + frames]
    colours = colormaps["magma"](np.clip((mel + 80) / 80, 0, 1))[..., :3]
    small = Image.fromarray((255 * colours).astype(np.uint8)).resize(SIZE)
    return data_uri("image/jpeg", small.save, "JPEG", quality=70)


def data_uri(kind: str, write, *arguments, **options) -> str:
    stream = io.BytesIO()
    write(stream, *arguments, **options)
    return f"data:{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def add_sounds(clips: list[dict], corpus: Corpus) -> int:
    """Add the sound of the clips whose audio is at hand, mistakes first; returns their number."""
    room, count = ROOM, 0
    for clip in sorted(clips, key=lambda clip: clip["genre"] == clip["guess"]):
        path = corpus.audio(clip["id"])
        if path is None or room < 0:
            continue
        try:
            samples = load_audio(path, SECONDS)
        except AudioError as error:
            print(error)
            continue
        samples = 0.8 * samples / max(float(np.abs(samples).max()), 1e-9)

        def write(stream, samples=samples):
            soundfile.write(stream, samples, SAMPLE_RATE, format="MP3", compression_level=0.9)

        clip["sound"] = data_uri("audio/mpeg", write)
        room -= len(clip["sound"])
        count += 1
    return count
