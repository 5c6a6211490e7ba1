"""The test clips of step 7 for the class: where each lies, what it was taken for, how it sounds.

They come from the record of notebook 07, `facts["map"]`: {"ids", "x", "y", "genre", "predicted"},
a list each, with a place in two dimensions for each clip; "model" names the network. Pictures and
sounds are added where the corpus is at hand.
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

log = logging.getLogger("labhelpers")
NOTEBOOK = "07_cnn"
ROOM = 1_400_000  # bytes of pictures and sounds in the page; what comes too late has none
SECONDS = 4  # of a sound
PICTURE = (160, 64)  # pixels of a spectrogram


def clip_page(records: dict, root: str) -> dict | None:
    """What the page of clips shows, as JSON values; None where notebook 07 left no map.

    records : name -> Run; root : the corpus's folder, which need not be there
    """
    if NOTEBOOK not in records or "map" not in records[NOTEBOOK].facts:
        return None
    found = records[NOTEBOOK].facts["map"]
    classes = found.get("classes") or sorted({*found["genre"], *found["predicted"]})
    places = np.array([found["x"], found["y"]], float)  # (2, N)
    low, high = places.min(1, keepdims=True), places.max(1, keepdims=True)
    places = (places - low) / np.maximum(high - low, 1e-9)
    clips = []
    for i, clip in enumerate(found["ids"]):
        clips.append({
            "id": clip, "x": round(places[0, i], 4), "y": round(places[1, i], 4),
            "genre": found["genre"][i], "predicted": found["predicted"][i],
        })  # fmt: skip
    if root and Path(root).is_dir():
        _add_pictures_and_sounds(clips, Corpus(Path(root)))
    return {"classes": classes, "clips": clips, "model": found.get("model", "CNN")}


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
