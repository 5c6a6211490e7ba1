"""The test clips of step 7 for a page: where each lies, what it was taken for, how it sounds."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import soundfile
from matplotlib import colormaps
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.preprocessing import minmax_scale

from labhelpers.audio import FRAME_RATE, N_MELS, SAMPLE_RATE, AudioError, load_audio
from labhelpers.corpus import Corpus, CorpusError, load_array
from labhelpers.records import RunError

NOTEBOOK, MODEL, CLIPS = "07_cnn", "CNN mel", "genre test"
SECONDS = 5  # of a clip, from its middle
SIZE = (240, 96)  # pixels of a spectrogram
SOUNDS = 250  # clips with sound, about 25 kB each; mistakes come first


def clips_of(runs: dict, root: str) -> dict | None:
    """What the page of clips shows, as JSON values; None where there is nothing to show.

    runs : notebook -> Run; root : the corpus's folder, which need not be there
    """
    corpus = Corpus(Path(root))
    try:
        ids, seeds = runs[NOTEBOOK].predictions(MODEL, CLIPS)
        table = corpus.labels("genre", "test").set_index("id").loc[ids]
        training = corpus.labels("genre", "train")
        pictures = [picture(path) for path in table["path"]]
    except (RunError, CorpusError, KeyError):
        return None
    classes = sorted(set(training["genre"].map(corpus.mapping).dropna()))
    shares = np.mean(seeds, axis=0)  # (N, classes)
    if not 1 < len(classes) == shares.shape[1]:
        return None
    # On the map, clips of which the network says the same lie together.
    places = minmax_scale(PCA(2).fit_transform(np.log(shares + 1e-3))).round(4).tolist()
    clips = [
        {
            "id": clip,
            "place": place,
            "genre": corpus.mapping[genre],
            "guess": classes[share.argmax()],
            "shares": share.round(2).tolist(),
            "picture": small,
        }
        for clip, place, genre, share, small in zip(ids, places, table["genre"], shares, pictures)
    ]
    clips.sort(key=lambda clip: clip["genre"] == clip["guess"])
    for clip in clips[:SOUNDS]:
        clip["sound"] = sound(corpus.audio(clip["id"]) or Path())
    return {"classes": classes, "clips": clips, "model": MODEL}


def picture(path: Path) -> str:
    """The middle of a clip's mel spectrogram as a small JPEG."""
    mel = load_array(path)[:N_MELS][::-1]  # low notes below
    frames = min(mel.shape[1], round(SECONDS * FRAME_RATE))
    start = (mel.shape[1] - frames) // 2
    colours = colormaps["magma"]((mel[:, start : start + frames] + 80) / 80)[..., :3]
    image = Image.fromarray((255 * colours).astype(np.uint8)).resize(SIZE)
    return data_uri("image/jpeg", image.save, "JPEG", quality=70)


def sound(path: Path) -> str:
    """The middle of a clip as MP3; empty where there is no audio."""
    try:
        samples = load_audio(path, SECONDS)
    except AudioError:
        return ""
    samples = 0.8 * samples / max(np.abs(samples).max(), 1e-9)
    options = {"format": "MP3", "compression_level": 0.9}
    return data_uri("audio/mpeg", soundfile.write, samples, SAMPLE_RATE, **options)


def data_uri(kind: str, write, *arguments, **options) -> str:
    """What `write(stream, ...)` writes, as an address."""
    stream = io.BytesIO()
    write(stream, *arguments, **options)
    return f"data:{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
