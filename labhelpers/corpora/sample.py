"""The sample corpus: synthesised music of twenty genres with known affect.

So every step has sound behind it. A clip is a band: drums on a 16-step bar, chords from a
progression, a bass line, a lead melody, then noise, room and a low-pass. The table says what is usual in a genre; a clip jitters that and borrows
some of it from another genre.
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
from scipy.signal import butter, fftconvolve, sosfilt
from scipy.special import ndtr

from ..audio import SAMPLE_RATE, extract
from ..files import write_text
from .layout import AFFECT, MARKER, CorpusError
from .write import array_name, clip_folders, in_processes, save_array, write_labels

SECONDS = 10
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

DRUMS = {  # kick, snare, cymbal over the 16 steps of a bar
    "rock": ("x.......x.x.....", "....x.......x...", "x.x.x.x.x.x.x.x."),
    "pop": ("x.....x.x.....x.", "....x.......x...", "x.x.x.x.x.x.x.xx"),
    "four": ("x...x...x...x...", "....x.......x...", "..x...x...x...x."),
    "boom": ("x......x..x.....", "....x.......x..x", "x.x.x.x.x.x.x.x."),
    "swing": ("x...............", ".......x.....x..", "x...x..xx...x..x"),
    "shuffle": ("x.......x.....x.", "....x.......x...", "x..xx..xx..xx..x"),
    "punk": ("x.x...x.x.x...x.", "..x.x.....x.x...", "x.x.x.x.x.x.x.x."),
    "double": ("xxxxxx.xxxxxxx.x", "....x.......x...", "x...x...x...x..."),
    "world": ("x..x....x..x..x.", "...x..x....x..x.", "x.xxx.xxx.xxx.xx"),
    "brush": ("x.......x.......", "....x.......x...", "..x...x...x...x."),
    "none": ("................", "................", "................"),
}
CHORDS = {  # degrees of the scale, one a bar; thirds stacked on each
    "pop": ([[0, 4, 5, 3], [0, 5, 3, 4], [5, 3, 0, 4], [0, 3, 0, 4]], 3),
    "modal": ([[0, 6, 0, 3], [0, 0, 6, 6], [0, 2, 3, 0], [0, 5, 0, 6]], 3),
    "power": ([[0, 0, 5, 6], [0, 3, 5, 4], [0, 1, 0, 5]], 0),
    "blues": ([[0, 3, 0, 0], [3, 0, 4, 3], [0, 0, 3, 0]], 4),
    "jazz": ([[1, 4, 0, 5], [0, 5, 1, 4], [2, 5, 1, 4]], 4),
    "choral": ([[0, 3, 4, 0], [0, 5, 1, 4], [0, 4, 5, 2]], 3),
}
COMP = {  # rhythm over the bar, all notes at once or one after the other, length in steps, attack and decay in seconds
    "strum": ("x...x.x...x.x.x.", "chord", 3, 0.003, 0.5),
    "tremolo": ("xxxxxxxxxxxxxxxx", "cycle4", 1.5, 0.01, 0.3),
    "pick": ("x.x.x.x.x.x.x.x.", "cycle", 4, 0.003, 0.5),
    "pad": ("x...............", "chord", 16, 0.15, 9),
    "arco": ("x.......x...x...", "chord", 7, 0.09, 9),
    "chug": ("x.x.x.xxx.x.x.x.", "chord", 1.7, 0.004, 0.25),
    "stab": ("..x...x...x...x.", "chord", 1.5, 0.005, 0.2),
    "gate": ("x..x..x.x..x..x.", "chord", 1.5, 0.005, 0.3),
    "arp": ("xxxxxxxxxxxxxxxx", "cycle", 1, 0.002, 0.3),
    "shells": ("x.....x......x..", "chord", 2.5, 0.005, 0.4),
}
BASS = {
    "eighths": "x.x.x.x.x.x.x.x.",
    "roots": "x.......x.......",
    "offbeat": "..x...x...x...x.",
    "sub": "x......x..x.....",
    "walk": "x...x...x...x...",
    "none": "................",
}
LEAD = {  # tilt, odd harmonics only, vibrato (semitones), attack, decay, chance of a note on an eighth, pitch, vowels
    "voice": (1.1, False, 0.35, 0.04, 2.0, 0.55, 60, True),
    "rap": (0.9, False, 0.60, 0.015, 0.2, 0.85, 46, True),
    "guitar": (0.9, False, 0.20, 0.005, 1.0, 0.60, 64, False),
    "flute": (2.2, False, 0.20, 0.05, 3.0, 0.45, 72, False),
    "sax": (0.9, False, 0.25, 0.03, 2.0, 0.70, 60, False),
    "fiddle": (0.9, False, 0.25, 0.06, 4.0, 0.60, 67, False),
    "synth": (0.7, False, 0.05, 0.005, 0.5, 0.60, 67, False),
    "square": (0.9, True, 0.00, 0.002, 0.6, 0.80, 72, False),
}
VOWELS = np.array(
    [[730, 1090, 2440], [270, 2290, 3010], [570, 840, 2410], [530, 1840, 2480], [300, 870, 2240]]
)  # Hz


def draw_style(genre: str, rng: np.random.Generator) -> dict:
    """The parameters of one clip: the genre's row, jittered, with some aspects borrowed; and key, mode, start."""
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
    # Few songs are in far keys: so a major third can be told from a minor one by the pitch classes alone, mostly.
    style["key"] = int(rng.choice([0, 7, 2, 9, 4, 5], p=[0.25, 0.2, 0.2, 0.15, 0.1, 0.1]))
    style["start"] = rng.random()
    style["treble"] = 4 * rng.standard_normal()  # dB: each recording has its own balance
    return style


MEAN, SPREAD = (
    np.array([0.60, 1.00, 1.87]),
    np.array([0.59, 0.62, 0.93]),
)  # of the signals below, over all genres


def affect(style: dict, rng: np.random.Generator) -> np.ndarray:
    """Valence, energy, danceability (0-1) that follow from a style, plus noise: spread as in the Echo Nest's table."""
    density = (
        sum(pattern.count("x") for pattern in DRUMS[style["drums"]][:2]) * style["bpm"] / 480
    )  # hits a second
    bright = style["cut"] / 8 - style["tilt"] / 1.2
    dance = np.exp(-((np.log2(style["bpm"] / 118) / 0.35) ** 2))  # most at 118 beats a minute
    signal = np.array([
        0.6 * style["major"] + bright + 0.6 * dance - 1.2 * style["room"] + 0.4 * style["beat"] - 0.5 * style["drive"],
        1.2 * style["drive"] + 0.15 * density * style["beat"] + 0.006 * style["bpm"] - style["swell"],
        1.8 * style["beat"] + 0.8 * dance - style["drive"] + 0.8 * style["bass"] + 0.2 * style["major"],
    ])  # fmt: skip
    z = [0.95, 0.85, 0.95] * (signal - MEAN) / SPREAD + [0.3, 0.5, 0.3] * rng.standard_normal(3)
    return np.clip(ndtr([0.95 * z[0] - 0.2, z[1] + 0.1, 0.62 * z[2] - 0.03]), 0.001, 0.999)


# --- from a style to samples ----------------------------------------------------------------------


def render(style: dict, rng: np.random.Generator) -> np.ndarray:
    """Samples (220500,) float64 in -0.9..0.9 of a style: 10 s at 22 050 Hz."""
    n = SECONDS * SAMPLE_RATE
    tracks = [
        (style["beat"], _drums(style, rng, n)),
        (0.55, _comp(style, rng, n)),
        (style["bass"], _bass(style, rng, n)),
        (style["tune"], _lead(style, rng, n)),
    ]
    mix = sum(level * _unit(track) for level, track in tracks)
    seconds = np.arange(n) / SAMPLE_RATE
    mix *= np.exp(
        1.5 * style["swell"] * np.sin(2 * np.pi * (seconds / rng.uniform(5, 12) + rng.random()))
    )
    tail = np.arange(int(1.5 * SAMPLE_RATE)) / SAMPLE_RATE
    echo = rng.standard_normal(len(tail)) * np.exp(-tail / (0.05 + 0.6 * style["room"]))
    mix = _unit(mix) + style["room"] * _unit(fftconvolve(mix, echo)[:n])
    mix += style["air"] * rng.standard_normal(n)
    low = _filter(mix, 800, "lowpass")
    mix = _filter(
        low + 10 ** (style["treble"] / 20) * (mix - low), min(style["cut"], 10.5) * 1000, "lowpass"
    )
    return 0.9 * mix / np.abs(mix).max()


def _unit(track: np.ndarray) -> np.ndarray:
    rms = np.sqrt(np.mean(track**2))
    return track / rms if rms > 0 else track


def _filter(track: np.ndarray, hertz, kind: str) -> np.ndarray:
    return sosfilt(butter(2, hertz, kind, fs=SAMPLE_RATE, output="sos"), track)


def _grid(style: dict, pattern: str, rng: np.random.Generator):
    """Yield (bar, step, start in seconds) of a pattern's marks, swung, a little off the grid; some begin before 0."""
    step = 15 / style["bpm"]
    for bar in range(int(SECONDS / (16 * step)) + 2):
        for i in (i for i, mark in enumerate(pattern) if mark == "x"):
            late = min(style["swing"], 1) * {2: 0.67, 3: 0.33}.get(i % 4, 0)
            start = (16 * (bar - style["start"]) + i + late) * step + 0.006 * rng.standard_normal()
            if start < SECONDS:
                yield bar, i, start


def _drums(style: dict, rng: np.random.Generator, n: int) -> np.ndarray:
    out = np.zeros(n)
    t = np.arange(int(0.4 * SAMPLE_RATE)) / SAMPLE_RATE
    noise = rng.standard_normal(len(t))
    tune, ring = rng.uniform(0.85, 1.2), rng.uniform(0.7, 1.4)
    kick = np.sin(2 * np.pi * tune * (48 * t + 4 * (1 - np.exp(-t / 0.03)))) * np.exp(
        -t / (0.09 * ring)
    )
    body = np.sin(2 * np.pi * 190 * tune * t) * np.exp(-t / 0.06)
    snare = 0.5 * body + 0.5 * _filter(noise, [800 * tune, 7000], "bandpass") * np.exp(
        -t / (0.07 * ring)
    )
    hat = _filter(noise, 6000, "highpass") * np.exp(
        -t / (0.03 + 0.05 * ring * (style["drums"] in ("swing", "rock")))
    )
    rest = rng.integers(-8, 8)  # half of the clips have a bar with cymbals only
    for sound, pattern, level in zip(
        (kick, snare, hat), DRUMS[style["drums"]], (1, 0.8, style["hats"]), strict=True
    ):
        for bar, i, start in _grid(style, pattern, rng):
            if start < 0 or rng.random() < 0.07 or (bar == rest and sound is not hat):
                continue
            at, accent = int(start * SAMPLE_RATE), rng.uniform(0.6, 1) * (1 if i % 4 == 0 else 0.8)
            end = min(n, at + len(t))
            out[at:end] += level * accent * sound[: end - at]
    return out


def _play(
    notes: list, spectrum, rng, n: int, attack: float, decay: float, vibrato: float = 0.0
) -> np.ndarray:
    """Samples (n,) of notes (start s, length s, MIDI pitch, level) from one period of a wave, read at the pitch.

    spectrum(k, hertz) : levels of the harmonics k of a note; a struck note loses the high ones first
    """
    out, size = np.zeros(n), 4096
    for start, length, pitch, level in notes:
        hertz = 440 * 2 ** ((pitch - 69) / 12)
        k = np.arange(1, max(2, min(60, int(10000 / hertz))))
        wave = np.zeros((2, size // 2 + 1), complex)
        wave[:, 1 : len(k) + 1] = (
            -0.5j * size * spectrum(k, hertz) * np.stack([np.ones(len(k)), np.exp(-0.25 * k)])
        )
        bright, dull = np.fft.irfft(wave)
        at = int(start * SAMPLE_RATE)
        t = np.arange(max(0, -at), min(n - at, int((length + 0.05) * SAMPLE_RATE))) / SAMPLE_RATE
        bend = vibrato * 0.06 * hertz * (1 - np.cos(2 * np.pi * 5.5 * t)) / (2 * np.pi * 5.5)
        index = ((hertz * t + bend + rng.random()) * size).astype(int) & (size - 1)
        fade = np.exp(-t / (0.5 * decay))
        tone = fade * bright[index] + (1 - fade) * dull[index]
        tone *= (
            np.exp(-t / decay)
            * np.clip(t / attack, 0, 1)
            * np.clip((length + 0.05 - t) / 0.05, 0, 1)
        )
        out[max(0, at) : max(0, at) + len(t)] += level * tone
    return out


def _scale(style: dict) -> list[int]:
    if style["chords"] == "blues":
        return [0, 2, 4, 5, 7, 9, 10]
    return [0, 2, 4, 5, 7, 9, 11] if style["major"] else [0, 2, 3, 5, 7, 8, 10]


def _chord(style: dict, degree: int) -> list[int]:
    """MIDI pitches, root first, near C3."""
    size, scale = CHORDS[style["chords"]][1], _scale(style)
    base = 48 + style["key"] - 12 * (style["key"] > 6)
    if size == 0:
        return [base + scale[degree] + up for up in (0, 7, 12)]
    return [base + scale[(degree + 2 * i) % 7] + 12 * ((degree + 2 * i) // 7) for i in range(size)]


def _degrees(style: dict) -> list[int]:
    choices = CHORDS[style["chords"]][0]
    return choices[int(style["start"] * 1000) % len(choices)]


def _comp(style: dict, rng: np.random.Generator, n: int) -> np.ndarray:
    pattern, kind, steps, attack, decay = COMP[style["comp"]]
    length, degrees, notes = steps * 15 / style["bpm"], _degrees(style), []
    for count, (bar, _, start) in enumerate(_grid(style, pattern, rng)):
        chord = _chord(style, degrees[bar % 4])
        level = rng.uniform(0.6, 1)
        if kind == "chord":
            notes += [
                (start + 0.012 * i * (style["comp"] == "strum"), length, p, level)
                for i, p in enumerate(chord)
            ]
        else:
            pitch = [*chord, chord[0] + 12][count // (4 if kind == "cycle4" else 1) % 4] + 12
            notes.append((start, length, pitch, level))
    notes = [note for note in notes if note[0] < SECONDS]
    track = _play(notes, lambda k, _: k ** -style["tilt"], rng, n, attack, decay)
    gain = 25 * min(style["drive"], 1) ** 2
    return _filter(np.tanh(gain * _unit(track)), 6000, "lowpass") if gain > 0.5 else track


def _bass(style: dict, rng: np.random.Generator, n: int) -> np.ndarray:
    line, degrees, notes = style["line"], _degrees(style), []
    for bar, i, start in _grid(style, BASS[line], rng):
        chord = _chord(style, degrees[bar % 4])
        pitch = chord[(i // 4) % len(chord)] if line == "walk" else chord[0]
        steps = {"eighths": 1.8, "offbeat": 1.8, "walk": 3.5}.get(line, 7)
        notes.append(
            (start, steps * 15 / style["bpm"], pitch - 12 - 12 * (pitch > 55), rng.uniform(0.7, 1))
        )
    tilt = 3.0 if line == "sub" else 1.6
    return _play(notes, lambda k, _: k**-tilt, rng, n, 0.006, 0.9)


def _lead(style: dict, rng: np.random.Generator, n: int) -> np.ndarray:
    tilt, odd, vibrato, attack, decay, busy, octave, formants = LEAD[style["lead"]]
    scale, degrees = _scale(style), _degrees(style)
    motif = [
        (rng.random() < busy, int(rng.integers(-2, 3)), rng.uniform(0.7, 1)) for _ in range(16)
    ]
    notes, place = [], int(rng.integers(0, 7))
    for bar, i, start in _grid(style, "x.x.x.x.x.x.x.x.", rng):
        sounds, move, level = motif[(8 * bar + i // 2) % 16]  # two bars that come again, varied
        if sounds != (rng.random() < 0.12):
            place = (
                degrees[bar % 4] + 2 * int(rng.integers(0, 3))
                if i == 0
                else int(np.clip(place + move, -3, 9))
            )
            pitch = (
                octave
                + style["key"]
                - 12 * (style["key"] > 6)
                + scale[place % 7]
                + 12 * (place // 7)
            )
            if style["lead"] == "rap":
                pitch = octave + 2 * rng.standard_normal()
            notes.append((start, rng.choice([1.8, 1.8, 3.8]) * 15 / style["bpm"], pitch, level))

    def spectrum(k, hertz):
        levels = k**-tilt * (k % 2 if odd else 1)
        if formants:
            distance = (k[:, None] * hertz - VOWELS[rng.integers(len(VOWELS))]) / [120, 180, 260]
            levels = levels * (0.05 + (np.exp(-(distance**2)) * [1, 0.8, 0.6]).sum(axis=1))
        return levels

    return _play(notes, spectrum, rng, n, attack, decay, vibrato)


# --- the corpus -----------------------------------------------------------------------------------


def plan_clips(seed: int) -> pd.DataFrame:
    """Columns id, split, task, genre: what the sample holds, in shuffled order, ids from 1."""
    rows = [
        ("train", "genre", genre)
        for genre, n in GENRES["n"].items()
        for _ in range(round(n * SHARE))
    ]
    # 2.5 test clips a genre on average: every other genre has one more.
    rows += [
        ("test", "genre", genre)
        for i, genre in enumerate(GENRES.index)
        for _ in range(2 + (i * 2 % 5 < 2))
    ]
    rng = np.random.default_rng([seed, 1])
    for split, count in N_AFFECT.items():
        rows += [
            (split, "affect", genre) for genre in np.resize(rng.permutation(GENRES.index), count)
        ]
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
    """Build the sample corpus, with its audio: 191 + 48 genre clips and 70 + 24 affect clips of 10 s.

    The affect labels of the test clips go to `kept_aside/`, for step 10. The same seed gives the
    same arrays. Takes a minute on two cores; the folder appears only when it is whole. Returns it.
    Raises CorpusError.
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
