"""The test clips of step 7 for the class: where each lies, what it was taken for, how it sounds.

They come from the record of notebook 07, `facts["map"]`: {"ids", "x", "y", "genre", "predicted"},
a list each, with a place in two dimensions for each clip; "model" names the network. Where the
corpus is at hand, pictures and sounds are added, and a record without a map will do.
"""

from __future__ import annotations

import base64
import io
import logging
from pathlib import Path

import numpy as np
import soundfile
from matplotlib import colormaps
from PIL import Image

from ..audio import SAMPLE_RATE, AudioError, load_audio
from ..corpora.layout import N_MELS, Corpus, CorpusError, load_array
from ..plots import DB_MAP
from ..records import RunError

log = logging.getLogger("labhelpers")
NOTEBOOK, MODEL = "07_cnn", "CNN mel"
ROOM = 1_400_000  # bytes of pictures and sounds in the page; what comes too late has none
SECONDS = 4  # of a sound
PICTURE = (160, 64)  # pixels of a spectrogram


def clip_page(records: dict, root: str) -> dict | None:
    """What the page of clips shows, as JSON values; None where there is nothing to show.

    records : name -> Run; root : the corpus's folder, which need not be there
    """
    if NOTEBOOK not in records:
        return None
    corpus = Corpus(Path(root)) if root and Path(root).is_dir() else None
    found = records[NOTEBOOK].facts.get("map") or _from_predictions(records, corpus)
    if found is None:
        return None
    classes = found.get("classes") or sorted({*found["genre"], *found["predicted"]})
    places = np.array([found["x"], found["y"]], float)  # (2, N)
    low, high = places.min(1, keepdims=True), places.max(1, keepdims=True)
    places = (places - low) / np.maximum(high - low, 1e-9)
    clips = []
    for i, clip in enumerate(found["ids"]):
        clips.append(
            {
                "id": clip,
                "x": round(float(places[0, i]), 4),
                "y": round(float(places[1, i]), 4),
                "genre": found["genre"][i],
                "predicted": found["predicted"][i],
            }
        )
    if corpus:
        _add_pictures_and_sounds(clips, corpus)
    return {"classes": classes, "clips": clips, "model": found.get("model", "CNN")}


def _from_predictions(records: dict, corpus: Corpus | None) -> dict | None:
    """A map by what the CNN said of each clip: the two main axes of its log-probabilities."""
    known = [run.facts["classes"] for run in records.values() if "classes" in run.facts]
    if corpus is None or not known:
        return None
    try:
        ids, seeds = records[NOTEBOOK].predictions(MODEL, "test")
        genres = corpus.labels("genre", "test").set_index("id")["genre"].map(corpus.mapping)
    except (RunError, CorpusError):
        return None
    shares = np.mean(seeds, axis=0)  # (N, classes)
    if shares.shape[1] != len(known[0]) or not set(ids) <= set(genres.index):
        return None
    centred = np.log(shares + 1e-6)
    centred -= centred.mean(0)
    x, y = np.linalg.svd(centred, full_matrices=False)[2][:2] @ centred.T
    return {
        "ids": ids,
        "x": x,
        "y": y,
        "genre": [genres[clip] for clip in ids],
        "model": MODEL,
        "predicted": [known[0][best] for best in shares.argmax(1)],
        "classes": known[0],
    }


def _add_pictures_and_sounds(clips: list[dict], corpus: Corpus) -> None:
    """Add "picture" and "sound" as data URIs, pictures first, as long as there is room."""
    room = ROOM
    paths = corpus.labels("genre", "test").set_index("id")["path"]
    for kind, make, sources in (
        ("picture", _picture, {clip: paths.get(clip) for clip in paths.index}),
        ("sound", _sound, {clip["id"]: corpus.audio(clip["id"]) for clip in clips}),
    ):
        for clip in clips:
            source = sources.get(clip["id"])
            if source is None or room < 0:
                continue
            try:
                uri = make(source)
            except (CorpusError, AudioError, OSError) as error:
                log.warning("%s: not in the page of clips", error)
                continue
            room -= len(uri)
            clip[kind] = uri


def _picture(path: Path) -> str:
    """A clip's mel spectrogram as a small JPEG."""
    mel = load_array(path)[:N_MELS][::-1]  # low notes below
    colours = colormaps[DB_MAP](np.clip((mel + 80) / 80, 0, 1))[..., :3]
    small = Image.fromarray((255 * colours).astype(np.uint8)).resize(PICTURE)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=70)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _sound(path: Path) -> str:
    """The first seconds of a clip as MP3."""
    samples = load_audio(path)[: SECONDS * SAMPLE_RATE]
    samples = 0.8 * samples / max(np.abs(samples).max(), 1e-9)
    stream = io.BytesIO()
    soundfile.write(stream, samples, SAMPLE_RATE, format="MP3", compression_level=0.9)
    return f"data:audio/mpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
