"""The sample corpus: synthesised music of twenty genres with known affect.

So every step has sound behind it. The tables say what is usual in a genre; a clip jitters that and
borrows some of it from another genre, and `synth` plays it.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from scipy.special import ndtr

from ..audio import SAMPLE_RATE, extract
from ..files import write_text
from .layout import AFFECT, MARKER, CorpusError
from .synth import DRUMS, render
from .write import array_name, clip_folders, in_processes, save_array, write_labels

BORROW = 0.22  # chance that a clip takes one aspect (rhythm, harmony, …) from another genre
JITTER = 0.15  # relative spread of a genre's numbers
SHARE = 0.0617  # of the real data's clips: 191 train and 48 test
N_AFFECT = {"train": 70, "test": 24}

# What is usual in a genre. n: clips in the real training set; bpm; drum pattern, level of drums and
# of cymbals; swing (0 straight, 1 triplets); chord progression; chance of a major key. Then how
# chords are played; spectral tilt (harmonic k has k^-tilt); distortion; bass line and its level;
# lead instrument and its level; noise; reverberation; low-pass (kHz); depth of slow swells.
_NOTES = """
genre         n   bpm drums   beat hats swing chords major
Rock          160 128 rock    .80  .50  .0    pop    .65
Psych-Rock    160 120 rock    .78  .50  .0    modal  .55
Post-Rock     95  116 rock    .75  .52  .0    modal  .55
Indie-Rock    160 128 pop     .77  .50  .0    pop    .72
Pop           160 114 pop     .75  .45  .0    pop    .80
Folk          160 106 brush   .10  .15  .0    pop    .70
Psych-Folk    160 102 brush   .12  .17  .0    modal  .62
Metal         153 164 double  .85  .48  .0    power  .15
Punk          160 174 punk    .85  .52  .0    power  .35
Post-Punk     160 146 rock    .80  .52  .0    modal  .35
Electronic    160 126 four    .95  .72  .0    modal  .35
Chiptune      160 132 four    .85  .68  .0    modal  .50
Hip-Hop       160 92  boom    .95  .50  .25   modal  .35
Trip-Hop      137 84  boom    .80  .40  .15   modal  .25
Classical     160 92  none    .00  .00  .0    choral .60
Soundtrack    124 82  none    .03  .03  .0    choral .50
Blues         160 98  shuffle .60  .40  .9    blues  .60
Jazz          160 140 swing   .40  .60  .9    jazz   .60
International 160 110 world   .50  .40  .05   modal  .55
Old-Time      160 112 brush   .13  .12  .1    pop    .80
"""
_SOUND = """
genre         comp   tilt drive line    bass lead   tune air room cut swell
Rock          strum  1.0  .50   eighths .50  voice  .45  .03 .15  8.5 .10
Psych-Rock    strum  1.0  .50   eighths .50  guitar .45  .03 .22  8.3 .12
Post-Rock     strum  1.0  .48   eighths .48  guitar .40  .03 .28  8.2 .25
Indie-Rock    strum  1.1  .30   eighths .50  voice  .58  .03 .17  8.9 .10
Pop           pad    1.4  .00   roots   .50  voice  .75  .01 .20  9.5 .05
Folk          pick   1.3  .00   roots   .20  voice  .55  .02 .15  7.5 .15
Psych-Folk    pick   1.3  .02   roots   .20  voice  .52  .02 .25  7.5 .17
Metal         chug   .75  .92   eighths .55  guitar .32  .04 .10  9.0 .05
Punk          chug   .8   .85   eighths .55  voice  .38  .04 .12  9.0 .05
Post-Punk     strum  .9   .50   eighths .70  voice  .40  .03 .22  8.4 .10
Electronic    gate   .8   .10   offbeat .72  synth  .45  .01 .20  10  .10
Chiptune      arp    .7   .07   offbeat .60  square .52  .01 .12  10  .08
Hip-Hop       stab   1.4  .05   sub     .85  rap    .75  .03 .08  8.5 .05
Trip-Hop      pad    1.5  .05   sub     .75  voice  .40  .05 .45  7.0 .15
Classical     arco   1.3  .00   none    .00  fiddle .60  .01 .45  7.0 .60
Soundtrack    arco   1.4  .00   sub     .20  flute  .40  .02 .55  6.7 .52
Blues         strum  1.2  .20   walk    .60  guitar .55  .03 .15  7.5 .15
Jazz          shells 1.4  .00   walk    .70  sax    .60  .02 .20  8.0 .15
International pick   1.2  .00   roots   .30  flute  .58  .02 .18  7.8 .12
Old-Time      pick   1.1  .01   roots   .22  fiddle .60  .06 .10  5.5 .10
"""


def _read(table: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(table), sep=r"\s+", index_col="genre")


GENRES = _read(_NOTES).join(_read(_SOUND))
ASPECTS = {
    "rhythm": ["bpm", "drums", "beat", "hats", "swing"],
    "harmony": ["chords", "major", "line", "bass"],
    "sound": ["comp", "tilt", "drive"],
    "tune": ["lead", "tune"],
    "finish": ["air", "room", "cut", "swell"],
}
# Of the signals that affect is made of, over all genres.
MEAN, SPREAD = np.array([0.60, 1.00, 1.87]), np.array([0.59, 0.62, 0.93])


def draw_style(genre: str, rng: np.random.Generator) -> dict:
    """The parameters of one clip: the genre's row, jittered, with some aspects borrowed.

    Also its key, mode, and where in the bar it starts. Notebook: 03.
    """
    style = GENRES.loc[genre].to_dict()
    for columns in ASPECTS.values():
        if rng.random() < BORROW:
            style.update(GENRES.loc[rng.choice(GENRES.index), columns].to_dict())
    for name, value in style.items():
        if not isinstance(value, str):
            style[name] = float(value * np.exp(JITTER * rng.standard_normal()))
    for name in ("beat", "hats", "bass", "tune"):  # mixing desks differ more than bands do
        style[name] *= np.exp(2 * JITTER * rng.standard_normal())
    style["major"] = bool(rng.random() < style["major"])
    # Few songs are in far keys, so the pitch classes alone mostly tell major from minor.
    style["key"] = int(rng.choice([0, 7, 2, 9, 4, 5], p=[0.25, 0.2, 0.2, 0.15, 0.1, 0.1]))
    style["start"] = rng.random()
    style["treble"] = 4 * rng.standard_normal()  # dB: each recording has its own balance
    return style


def affect(style: dict, rng: np.random.Generator) -> np.ndarray:
    """Valence, energy, danceability (0-1) that follow from a style, plus noise. Notebook: 00.

    They are spread as in the Echo Nest's table.
    """
    hits = sum(pattern.count("x") for pattern in DRUMS[style["drums"]][:2])
    density = hits * style["bpm"] / 480  # hits a second
    bright = style["cut"] / 8 - style["tilt"] / 1.2
    dance = np.exp(-((np.log2(style["bpm"] / 118) / 0.35) ** 2))  # most at 118 beats a minute
    beat, drive, major = style["beat"], style["drive"], style["major"]
    signal = np.array(
        [
            0.6 * major + bright + 0.6 * dance - 1.2 * style["room"] + 0.4 * beat - 0.5 * drive,
            1.2 * drive + 0.15 * density * beat + 0.006 * style["bpm"] - style["swell"],
            1.8 * beat + 0.8 * dance - drive + 0.8 * style["bass"] + 0.2 * major,
        ]
    )
    z = [0.95, 0.85, 0.95] * (signal - MEAN) / SPREAD + [0.3, 0.5, 0.3] * rng.standard_normal(3)
    return np.clip(ndtr([0.95 * z[0] - 0.2, z[1] + 0.1, 0.62 * z[2] - 0.03]), 0.001, 0.999)


# --- the corpus -----------------------------------------------------------------------------------


def plan_clips(seed: int) -> pd.DataFrame:
    """Columns id, split, task, genre: what the sample holds, in shuffled order, ids from 1.

    Notebook: 00.
    """
    rows = []
    for genre, n in GENRES["n"].items():
        rows += [("train", "genre", genre)] * round(n * SHARE)
    for i, genre in enumerate(GENRES.index):
        # 2.5 test clips a genre on average: every other genre has one more.
        rows += [("test", "genre", genre)] * (2 + (i * 2 % 5 < 2))
    rng = np.random.default_rng([seed, 1])
    for split, count in N_AFFECT.items():
        for genre in np.resize(rng.permutation(GENRES.index), count):
            rows.append((split, "affect", genre))
    table = pd.DataFrame(rows, columns=["split", "task", "genre"]).iloc[rng.permutation(len(rows))]
    table.insert(0, "id", [str(number) for number in range(1, len(table) + 1)])
    return table.reset_index(drop=True)


def _make_clip(audio: Path, targets: list[tuple[Path, bool]], genre: str, seed: int, number: int):
    """Write a clip's audio and arrays; returns its affect.

    The number, not the order of work, decides its music.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
    style = draw_style(genre, rng)
    labels = affect(style, rng)
    soundfile.write(audio, render(style, rng), SAMPLE_RATE, subtype="PCM_16")
    arrays = extract(audio)
    for path, beat in targets:
        save_array(path, arrays[beat])
    return labels.round(3).tolist()


def make_sample(out: str | Path, seed: int = 0, jobs: int = -1, progress: bool = True) -> Path:
    """Build the sample corpus: 191 + 48 genre and 70 + 24 affect clips of 10 s, with their audio.

    The affect labels of the test clips go to `kept_aside/`, for step 10. The same seed gives the
    same arrays. Takes a minute on two cores; the folder appears only when it is whole. Returns it.
    Raises CorpusError. Notebook: 00.
    """
    out = Path(out).expanduser().resolve()
    if (out / MARKER).exists():
        raise CorpusError(f"{out}: holds a corpus already; remove it or name another folder")
    root = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for old in out.parent.glob(f".{out.name}-*"):  # what a killed build left
            if time.time() - old.stat().st_mtime > 3600:
                shutil.rmtree(old, ignore_errors=True)
        root = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        _build(root, seed, jobs, progress)
        root.chmod(0o755)
        os.replace(root, out)
    except OSError as error:
        raise CorpusError(
            f"{out}: the sample cannot be written ({error}); make room or name another folder"
        ) from error
    finally:
        if root:
            shutil.rmtree(root, ignore_errors=True)
    return out


def _build(root: Path, seed: int, jobs: int, progress: bool) -> None:
    (root / "audio").mkdir()
    plan = plan_clips(seed)
    # What is played is known of every clip; what is told, of the genre clips alone.
    clips = plan.assign(genre=plan["genre"].where(plan["task"] == "genre"))
    clips["source"] = [str(root / "audio" / f"{clip}.flac") for clip in clips["id"]]
    clips["valence"] = np.where(plan["task"] == "affect", 0.5, np.nan)  # until it is made
    todo = []
    for row in clips.itertuples():
        targets = []
        for folder, beat in clip_folders(row):
            targets.append((root / folder / row.split / array_name(row.id), beat))
        todo.append((Path(row.source), targets, plan["genre"][row.Index], seed, row.Index))
    for (*_, number), labels in in_processes(_make_clip, todo, jobs, progress=progress):
        if plan["task"][number] == "affect":
            clips.loc[number, list(AFFECT)] = labels
    write_labels(root, clips, answers="kept_aside/multitask_test_labels.txt")
    write_text(root / "sample.json", json.dumps({"seed": seed, "clips": len(clips)}))
