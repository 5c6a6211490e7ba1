"""The sample corpus: synthesised music of twenty genres, with all that was played on record.

Every step of the lab has sound and an answer with it. genres.csv says what is usual in a genre,
band.json what its instruments play. A track varies that and borrows some of it from another genre.
A clip is ten seconds of a track.

    python -m labhelpers.sample FOLDER
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from csv import QUOTE_NONE
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from joblib import Parallel, delayed
from scipy.signal import butter, oaconvolve, sosfilt
from scipy.special import ndtr
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from .audio import SAMPLE_RATE, extract, fill_numba_cache
from .corpus import AFFECT, ANSWERS, CLASS_MAPPING, FOLDERS, MARKER

SHARE = 0.1  # training clips, of those that the lab's data has of a genre
TEST_SHARE = 0.09
DROPPED_TEST = 3  # test clips of each genre that the lab drops
AFFECT_TRAIN, AFFECT_TEST = 8, 5  # clips of each genre
CLIPS_PER_TRACK = [0.7, 0.2, 0.1]  # chances that a track gives one, two or three clips
BORROW = 0.22  # chance that a track takes one aspect (rhythm, harmony, …) from another genre
JITTER = 0.15  # relative spread of a genre's numbers

# What is usual in a genre. n: clips in the lab's training set; bpm; drum pattern, level of drums
# and of cymbals; swing (0 straight, 1 triplets); chord progression; chance of a major key; how
# chords are played; spectral tilt (harmonic k has k^-tilt); distortion; bass line and its level;
# lead instrument and its level; noise; reverberation; low-pass (kHz); depth of slow swells.
GENRES = pd.read_csv(Path(__file__).with_name("genres.csv"), index_col="genre")
# What the band plays. Of a bar of 16 steps: kick, snare and cymbal of the drums; rhythm of chords
# (comp) and bass. Lengths in steps, attack and decay in seconds, vibrato in semitones; busy: chance
# of a note on an eighth, octave and pitches in MIDI numbers or semitones, vowels as Hz of formants.
# Progressions are degrees of the scale, one per bar; chords with 0 notes are root, fifth, octave.
# Aspects are what a track can borrow as one; affect is made of signals, which have weights, a mean
# and a spread over all genres.
BAND = json.loads(Path(__file__).with_name("band.json").read_text())

STEPS = 16  # per bar of four beats
BARS = 4  # of a progression
SECONDS = 10
N = SECONDS * SAMPLE_RATE  # samples of a clip
WAVE = 4096  # samples of one period
LATE = (0, 0, 0.67, 0.33)  # steps by which full swing delays each quarter of a beat


# --- what is played -------------------------------------------------------------------------------


def draw_style(genre: str, rng: np.random.Generator) -> dict:
    """What a track is made of: the genre's row, varied, with some aspects of other genres.

    Also its key, mode and chord progression.
    """
    style = GENRES.loc[genre].to_dict()
    for columns in BAND["aspects"]:
        if rng.random() < BORROW:
            other = rng.choice(GENRES.index)
            style.update(GENRES.loc[other, columns])
    for name, value in style.items():
        if not isinstance(value, str):
            style[name] = float(value * np.exp(JITTER * rng.standard_normal()))
    for name in ("beat", "hats", "bass", "tune"):  # mixing desks differ more than bands do
        style[name] *= np.exp(2 * JITTER * rng.standard_normal())
    style["major"] = bool(rng.random() < style["major"])
    # Few songs are in far keys, so the pitch classes alone mostly give away major and minor.
    style["key"] = int(rng.choice([0, 7, 2, 9, 4, 5], p=[0.25, 0.2, 0.2, 0.15, 0.1, 0.1]))
    style["treble"] = 4 * rng.standard_normal()  # dB: each recording has its own balance
    progressions = BAND["chords"][style["chords"]]["progressions"]
    style["progression"] = progressions[rng.integers(len(progressions))]
    return style


def affect(style: dict, rng: np.random.Generator | None = None) -> np.ndarray:
    """Valence, energy, danceability (0-1) that follow from a style; with rng, plus noise.

    They are spread as in the Echo Nest's table.
    """
    kick, snare, _ = BAND["drums"][style["drums"]]
    density = (kick + snare).count("x") * style["bpm"] / 480  # strokes per second
    off = np.log2(style["bpm"] / 118)  # octaves from the tempo to which one dances best
    traits = {
        **style,
        "strokes": 0.15 * density * style["beat"],
        "bright": style["cut"] / 8 - style["tilt"] / 1.2,
        "dance": np.exp(-((off / 0.35) ** 2)),
    }
    signal = []
    for weights in BAND["affect"]["weights"]:
        signal.append(sum(weight * traits[name] for name, weight in weights.items()))
    z = np.subtract(signal, BAND["affect"]["mean"])
    z = [0.95, 0.85, 0.95] * z / BAND["affect"]["spread"]
    if rng:
        z += [0.3, 0.5, 0.3] * rng.standard_normal(3)
    return np.clip(ndtr([0.95 * z[0] - 0.2, z[1] + 0.1, 0.62 * z[2] - 0.03]), 0.001, 0.999)


def score(style: dict, start: float) -> dict:
    """What is known of a clip that begins `start` bars into a track: a row of truth.tsv.

    beat, bar : seconds of the first beat, and of the first beginning of a bar
    chords : one per bar, from that bar on; after the last the first comes again
    """
    bar = 240 / style["bpm"]
    first = int(np.ceil(start))
    chords = [_chord_name(_chord(style, first + i)) for i in range(BARS)]
    return {
        "bpm": style["bpm"],
        "beat": (np.ceil(4 * start) / 4 - start) * bar,
        "bar": (first - start) * bar,
        "key": BAND["pitches"][style["key"]],
        "mode": "major" if style["major"] else "minor",
        "chords": " ".join(chords),
        "drums": style["drums"],
        **dict(zip(AFFECT, affect(style))),
    }


def _chord_name(chord):
    root = chord[0]
    intervals = sorted({(pitch - root) % 12 for pitch in chord})
    quality = BAND["qualities"][" ".join(map(str, intervals))]
    return f"{BAND['pitches'][root % 12]}:{quality}"


def _chord(style, bar):
    """MIDI pitches, root first, near C3: thirds stacked on a degree of the scale."""
    degree = style["progression"][bar % BARS]
    size = BAND["chords"][style["chords"]]["notes"]
    if size == 0:
        root = 48 + _above_c(style, degree)
        return [root, root + 7, root + 12]
    return [48 + _above_c(style, degree + 2 * i) for i in range(size)]


def _above_c(style, degree):
    """Semitones of a degree of the scale; degree 7 is the octave of the key note."""
    scale = "major" if style["major"] else "minor"
    if style["chords"] == "blues":
        scale = f"blues {scale}"
    octave, step = divmod(degree, 7)
    key = style["key"]
    if key > 6:
        key -= 12
    return key + BAND["scales"][scale][step] + 12 * octave


# --- how it sounds --------------------------------------------------------------------------------


def render(style: dict, start: float, rng: np.random.Generator) -> np.ndarray:
    """Samples (220500,) in -0.9..0.9: 10 s of a track, from `start` bars on, at 22,050 Hz."""
    mix = style["beat"] * _unit(_drums(style, start, rng))
    mix += 0.55 * _unit(_comp(style, start, rng))
    mix += style["bass"] * _unit(_bass(style, start, rng))
    mix += style["tune"] * _unit(_lead(style, start, rng))
    turns = _times(SECONDS) / rng.uniform(5, 12) + rng.random()
    mix *= np.exp(1.5 * style["swell"] * np.sin(2 * np.pi * turns))
    tail = _times(1.5)
    echo = rng.standard_normal(len(tail)) * np.exp(-tail / (0.05 + 0.6 * style["room"]))
    mix = _unit(mix) + style["room"] * _unit(oaconvolve(mix, echo)[:N])
    mix += style["air"] * rng.standard_normal(N)
    low = _filter(mix, 800, "lowpass")
    mix = low + 10 ** (style["treble"] / 20) * (mix - low)
    mix = _filter(mix, min(style["cut"], 10.5) * 1000, "lowpass")
    return 0.9 * mix / np.abs(mix).max()


def _times(seconds):
    return np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE


def _unit(track):
    """A track at root mean square 1; silence stays."""
    rms = np.sqrt(np.mean(track**2))
    return track / (rms or 1)


def _filter(track, hertz, kind):
    sections = butter(2, hertz, kind, fs=SAMPLE_RATE, output="sos")
    return sosfilt(sections, track)


def _grid(style, start, pattern, rng):
    """Yield (bar, step, time in seconds) of a pattern's marks, a little off the grid.

    They are swung as the style says; some begin before 0.
    """
    seconds = 15 / style["bpm"]  # of a step
    last = int(start + SECONDS / (STEPS * seconds))
    for bar in range(int(start), last + 1):
        for i, mark in enumerate(pattern):
            if mark != "x":
                continue
            late = min(style["swing"], 1) * LATE[i % 4]
            place = STEPS * (bar - start) + i + late
            onset = place * seconds + 0.006 * rng.standard_normal()
            if onset < SECONDS:
                yield bar, i, onset


def _drums(style, start, rng):
    sounds = _kit(style, rng)
    levels = (1, 0.8, style["hats"])
    rest = int(start) + rng.integers(-8, 8)  # half of the clips have a bar with cymbals only
    out = np.zeros(N)
    for drum, pattern in enumerate(BAND["drums"][style["drums"]]):
        for bar, i, onset in _grid(style, start, pattern, rng):
            if onset < 0 or rng.random() < 0.07:
                continue
            if bar == rest and drum < 2:
                continue
            accent = rng.uniform(0.6, 1)
            if i % 4 != 0:  # between the beats
                accent *= 0.8
            at = int(onset * SAMPLE_RATE)
            place = out[at : at + len(sounds[drum])]
            place += levels[drum] * accent * sounds[drum][: len(place)]
    return out


def _kit(style, rng):
    """The sounds of kick, snare and cymbal, 0.4 s each."""
    t = _times(0.4)
    noise = rng.standard_normal(len(t))
    tune = rng.uniform(0.85, 1.2)
    ring = rng.uniform(0.7, 1.4)
    falling = 48 * t + 4 * (1 - np.exp(-t / 0.03))
    kick = np.sin(2 * np.pi * tune * falling) * np.exp(-t / (0.09 * ring))
    body = np.sin(2 * np.pi * 190 * tune * t) * np.exp(-t / 0.06)
    rattle = 0.5 * _filter(noise, [800 * tune, 7000], "bandpass")
    rattle *= np.exp(-t / (0.07 * ring))
    closed = style["drums"] not in ("swing", "rock")
    fade = np.exp(-t / (0.03 + (0 if closed else 0.05 * ring)))
    return kick, 0.5 * body + rattle, _filter(noise, 6000, "highpass") * fade


def _comp(style, start, rng):
    """The chords, all at once or one note after the other."""
    comp, notes = BAND["comp"][style["comp"]], []
    length = comp["steps"] * 15 / style["bpm"]
    apart = 0.012 if style["comp"] == "strum" else 0
    for count, (bar, _, onset) in enumerate(_grid(style, start, comp["rhythm"], rng)):
        chord = _chord(style, bar)
        level = rng.uniform(0.6, 1)
        if comp["kind"] == "cycle":
            turn = [*chord, chord[0] + 12]
            chord = [turn[count % 4] + 12]
        for i, pitch in enumerate(chord):
            notes.append((onset + apart * i, length, pitch, level))
    track = _play(notes, comp, lambda k, _: k ** -style["tilt"], rng)
    gain = 25 * min(style["drive"], 1) ** 2
    if gain <= 0.5:
        return track
    return _filter(np.tanh(gain * _unit(track)), 6000, "lowpass")


def _bass(style, start, rng):
    line, notes = BAND["bass"][style["line"]], []
    length = line["steps"] * 15 / style["bpm"]
    for bar, i, onset in _grid(style, start, line["rhythm"], rng):
        chord = _chord(style, bar)
        pitch = chord[0]
        if style["line"] == "walk":
            pitch = chord[(i // 4) % len(chord)]
        pitch -= 24 if pitch > 55 else 12
        notes.append((onset, length, pitch, rng.uniform(0.7, 1)))
    return _play(notes, line, lambda k, _: k ** -line["tilt"], rng)


def _lead(style, start, rng):
    """Two bars of melody that come again, varied."""
    lead, motif = BAND["lead"][style["lead"]], []
    for _ in range(16):
        sounds = rng.random() < lead["busy"]
        motif.append((sounds, rng.integers(-2, 3), rng.uniform(0.7, 1)))
    notes, degree = [], rng.integers(0, 7)
    for bar, i, onset in _grid(style, start, "x.x.x.x.x.x.x.x.", rng):
        sounds, move, level = motif[(8 * bar + i // 2) % 16]
        if sounds == (rng.random() < 0.12):
            continue
        if i == 0:
            degree = style["progression"][bar % BARS] + 2 * rng.integers(0, 3)
        else:
            degree = np.clip(degree + move, -3, 9)
        pitch = lead["octave"] + _above_c(style, int(degree))
        if style["lead"] == "rap":
            pitch = lead["octave"] + 2 * rng.standard_normal()
        length = rng.choice([1.8, 1.8, 3.8]) * 15 / style["bpm"]
        notes.append((onset, length, pitch, level))

    def spectrum(k, hertz):
        levels = k ** -lead["tilt"]
        if lead["odd"]:
            levels = levels * (k % 2)
        if not lead["vowels"]:
            return levels
        vowel = BAND["vowels"][rng.integers(5)]
        distance = (k[:, None] * hertz - vowel) / [120, 180, 260]
        formants = np.exp(-(distance**2)) * [1, 0.8, 0.6]
        return levels * (0.05 + formants.sum(axis=1))

    return _play(notes, lead, spectrum, rng)


def _play(notes, instrument, spectrum, rng):
    """Samples (N,) of notes (onset s, length s, MIDI pitch, level).

    spectrum(k, hertz) : levels of the harmonics k of a note, which reads one period of its wave
        at its pitch; a struck note loses the high ones first
    """
    out, waves = np.zeros(N, np.float32), {}
    # All notes share these; a note takes as much of them as it is long.
    longest = max([note[1] for note in notes], default=0)
    t = _times(longest + 0.05)
    vibrato = 0.06 * instrument.get("vibrato", 0)
    speed = 2 * np.pi * 5.5
    cycles = t + vibrato * (1 - np.cos(speed * t)) / speed
    fade = np.exp(-t / instrument["decay"]).astype(np.float32)
    body = fade * np.clip(t / instrument["attack"], 0, 1).astype(np.float32)
    stroke = body * fade**2
    release = np.clip(t / 0.05, 0, 1).astype(np.float32)  # by the time before the end
    for onset, length, pitch, level in notes:
        at = int(onset * SAMPLE_RATE)
        n = int((length + 0.05) * SAMPLE_RATE)
        begin, end = max(0, -at), min(n, N - at)
        if begin >= end:
            continue
        heard = slice(begin, end)  # what the clip has of the note
        hertz = 440 * 2 ** ((pitch - 69) / 12)
        if instrument.get("vowels") or pitch not in waves:
            waves[pitch] = _waves(spectrum, hertz)
        phase = hertz * cycles[heard] + rng.random()
        index = (phase * WAVE).astype(np.int32) & (WAVE - 1)
        dull, bright = waves[pitch][:, index]
        tone = body[heard] * dull + stroke[heard] * bright
        tone *= level * release[:n][::-1][heard]
        out[at + begin : at + end] += tone
    return out


def _waves(spectrum, hertz):
    """One period (2, WAVE) of a note as it dies away, and what it has more as it is struck."""
    count = max(1, min(59, int(10000 / hertz) - 1))
    k = np.arange(1, count + 1)
    dying = np.exp(-0.25 * k)
    levels = spectrum(k, hertz) * np.stack([dying, 1 - dying])
    wave = np.zeros((2, WAVE // 2 + 1), complex)
    wave[:, 1 : count + 1] = -0.5j * WAVE * levels
    return np.fft.irfft(wave).astype(np.float32)


# --- the corpus -----------------------------------------------------------------------------------


def plan_clips() -> pd.DataFrame:
    """Columns id, split, task, genre, track: what the sample holds, in shuffled order.

    Clips of one track have its number, and are of one genre, task and split.
    """
    rng = np.random.default_rng([0, 1])
    rows, track = [], 0
    for genre, n in GENRES["n"].items():
        dropped = CLASS_MAPPING[genre] is None
        counts = {
            ("train", "genre"): round(n * SHARE),
            ("test", "genre"): DROPPED_TEST if dropped else round(n * TEST_SHARE),
            ("train", "affect"): AFFECT_TRAIN,
            ("test", "affect"): AFFECT_TEST,
        }
        for (split, task), count in counts.items():
            while count > 0:
                clips = min(count, 1 + rng.choice(3, p=CLIPS_PER_TRACK))
                rows += clips * [(split, task, genre, track)]
                count -= clips
                track += 1
    table = pd.DataFrame(rows, columns=["split", "task", "genre", "track"])
    table = table.iloc[rng.permutation(len(table))].reset_index(drop=True)
    table.insert(0, "id", (table.index + 1).astype(str))
    return table


def make_clip(root: Path, clip: str, split: str, task: str, genre: str, track: int) -> dict:
    """Write a clip's audio and arrays; returns its row of truth.tsv, and its noisy affect labels.

    Its numbers, not the order of work, decide its music.
    """
    draws = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(track,)))
    style = draw_style(genre, draws)
    labels = affect(style, draws)
    rng = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(track, int(clip))))
    start = rng.uniform(0, BARS)
    audio = root / "audio" / f"{clip}.flac"
    soundfile.write(audio, render(style, start, rng), SAMPLE_RATE)
    write_arrays(root, clip, split, [task], extract(audio))
    return {"id": clip, "labels": labels, **score(style, start)}


def make_sample(root: str | Path, jobs: int = -1) -> None:
    """Build the sample corpus: 307 + 218 genre and 160 + 100 affect clips of 10 s, with audio.

    The affect labels of the test clips go to `kept_aside/`, for step 10. It is the same each time.
    Takes two or three minutes on two cores. The folder appears when it is whole. Raises
    FileExistsError, OSError.
    """
    root = Path(root).expanduser().resolve()
    if (root / MARKER).exists():
        raise FileExistsError(f"{root}: holds a corpus already; remove it or name another folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as folder:
        partial = Path(folder, root.name)
        (partial / "audio").mkdir(parents=True)
        _build(partial, jobs)
        if not (root / MARKER).exists():  # else another process was faster
            os.replace(partial, root)


def _build(root, jobs):
    clips = plan_clips()
    todo = [(root, *row) for row in clips.itertuples(index=False)]
    rows = list(in_processes(make_clip, todo, jobs))
    truth = clips[["id", "genre"]].merge(pd.DataFrame(rows), on="id")
    labels = pd.DataFrame(truth.pop("labels").tolist())
    truth = truth.rename(columns={"id": "Id"})
    truth.to_csv(root / "truth.tsv", sep="\t", index=False, float_format="%.3f")
    clips["path"] = "audio/" + clips["id"] + ".flac"
    clips["group"] = "track " + clips["track"].astype(str)
    clips[list(AFFECT)] = labels.where(clips["task"] == "affect")
    clips["genre"] = clips["genre"].where(clips["task"] == "genre")
    write_labels(root, clips, answers=ANSWERS)


# --- how a corpus is written: also by scripts/extract.py -----------------------------------------


def write_arrays(root: Path, clip: str, split: str, tasks: list[str], arrays: tuple) -> None:
    """Write a clip's full and beat-synced array (of `extract`) to the folders of its tasks."""
    for path, beat in array_places(root, clip, split, tasks):
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, arrays[beat])


def array_places(root: Path, clip: str, split: str, tasks: list[str]) -> list[tuple[Path, bool]]:
    """Where the arrays of a clip lie: path, and whether it is the beat-synced one."""
    name = f"{clip}.fused.full.npy"
    folders = [(folder, beat) for (task, beat), folder in FOLDERS.items() if task in tasks]
    return [(root / folder / split / name, beat) for folder, beat in folders]


def write_labels(root: Path, clips: pd.DataFrame, answers: str | None = None) -> None:
    """Write the lab's label files for a table of clips.

    clips : columns id, split, path (of the audio), group, genre, valence, energy, danceability
    answers : where the affect labels of the test split go; None = to its label file
    """
    write_table(root / "audio.tsv", clips, {"id": "Id", "path": "Path"})
    # The marker comes last: only then is this a corpus.
    for (task, _), folder in reversed(FOLDERS.items()):
        rows = clips[clips["genre" if task == "genre" else "valence"].notna()]
        if task == "affect" and rows.empty:
            continue
        write_table(root / folder / "groups.txt", rows, {"id": "Id", "group": "Group"})
        for split in ("test", "train"):
            part = rows[rows["split"] == split]
            path = root / folder / f"{split}_labels.txt"
            if task == "genre":
                part = part.assign(id=part["id"] + ".fused.full.npy.gz")
                write_table(path, part, {"id": "Id", "genre": "Genre"})
                continue
            if split == "test" and answers:
                path = root / answers
            write_table(path, part, {"id": "Id", **dict(zip(AFFECT, AFFECT))}, sep=",")


def write_table(path: Path, table: pd.DataFrame, names: dict[str, str], sep: str = "\t") -> None:
    """Write columns of a table under other names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = table[list(names)].rename(columns=names)
    look = {"float_format": "%.3f", "lineterminator": "\n", "quoting": QUOTE_NONE}
    table.to_csv(path, sep=sep, index=False, **look)


def in_processes(work, todo: list[tuple], jobs: int = -1):
    """Yield work(*arguments) for each entry of `todo`, as they get done, with a progress bar.

    jobs : processes of one thread each, -1 = one per core
    """
    if jobs != 1:
        fill_numba_cache()
    pool = Parallel(jobs, batch_size=1, return_as="generator_unordered")
    results = pool(delayed(_one_thread)(work, arguments) for arguments in todo)
    pause = 0.1 if sys.stderr.isatty() else 30  # seconds; in a log every line stays
    yield from tqdm(results, total=len(todo), unit="clip", mininterval=pause)


def _one_thread(work, arguments):
    # More threads would change the last bits of a result, and gain nothing beside other processes.
    with threadpool_limits(1):
        return work(*arguments)


if __name__ == "__main__":
    from labhelpers import sample  # by a name under which other processes find its functions

    if len(sys.argv) != 2:
        sys.exit("usage: python -m labhelpers.sample FOLDER")
    sample.make_sample(sys.argv[1])
