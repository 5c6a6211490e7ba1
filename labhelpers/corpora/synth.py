"""A band that plays: from the style of a clip to samples, for the sample corpus.

Drums on a 16-step bar, chords from a progression, a bass line and a lead melody are mixed; then
come noise, room and a low-pass. The order of the random draws decides the sample's clips.
"""

from __future__ import annotations

import numpy as np
from scipy.signal import butter, fftconvolve, sosfilt

from ..audio import SAMPLE_RATE

SECONDS = 10
N = SECONDS * SAMPLE_RATE  # samples of a clip

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
# Rhythm over the bar, all notes at once or one after the other, length in steps, attack and decay
# in seconds.
COMP = {
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
# Tilt, odd harmonics only, vibrato (semitones), attack, decay, chance of a note on an eighth,
# pitch, vowels.
LEAD = {
    "voice": (1.1, False, 0.35, 0.04, 2.0, 0.55, 60, True),
    "rap": (0.9, False, 0.60, 0.015, 0.2, 0.85, 46, True),
    "guitar": (0.9, False, 0.20, 0.005, 1.0, 0.60, 64, False),
    "flute": (2.2, False, 0.20, 0.05, 3.0, 0.45, 72, False),
    "sax": (0.9, False, 0.25, 0.03, 2.0, 0.70, 60, False),
    "fiddle": (0.9, False, 0.25, 0.06, 4.0, 0.60, 67, False),
    "synth": (0.7, False, 0.05, 0.005, 0.5, 0.60, 67, False),
    "square": (0.9, True, 0.00, 0.002, 0.6, 0.80, 72, False),
}
VOWELS = [  # Hz of three formants
    (730, 1090, 2440),
    (270, 2290, 3010),
    (570, 840, 2410),
    (530, 1840, 2480),
    (300, 870, 2240),
]
WAVE = 4096  # samples of one period


def render(style: dict, rng: np.random.Generator) -> np.ndarray:
    """Samples (220500,) float64 in -0.9..0.9 of a style: 10 s at 22 050 Hz. Notebook: 00."""
    tracks = [
        (style["beat"], _drums(style, rng)),
        (0.55, _comp(style, rng)),
        (style["bass"], _bass(style, rng)),
        (style["tune"], _lead(style, rng)),
    ]
    mix = sum(level * _unit(track) for level, track in tracks)
    seconds = np.arange(N) / SAMPLE_RATE
    swell = np.sin(2 * np.pi * (seconds / rng.uniform(5, 12) + rng.random()))
    mix *= np.exp(1.5 * style["swell"] * swell)
    tail = np.arange(int(1.5 * SAMPLE_RATE)) / SAMPLE_RATE
    echo = rng.standard_normal(len(tail)) * np.exp(-tail / (0.05 + 0.6 * style["room"]))
    mix = _unit(mix) + style["room"] * _unit(fftconvolve(mix, echo)[:N])
    mix += style["air"] * rng.standard_normal(N)
    low = _filter(mix, 800, "lowpass")
    mix = low + 10 ** (style["treble"] / 20) * (mix - low)
    mix = _filter(mix, min(style["cut"], 10.5) * 1000, "lowpass")
    return 0.9 * mix / np.abs(mix).max()


def _unit(track: np.ndarray) -> np.ndarray:
    rms = np.sqrt(np.mean(track**2))
    if rms == 0:
        return track
    return track / rms


def _filter(track: np.ndarray, hertz, kind: str) -> np.ndarray:
    return sosfilt(butter(2, hertz, kind, fs=SAMPLE_RATE, output="sos"), track)


def _grid(style: dict, pattern: str, rng: np.random.Generator):
    """Yield (bar, step, start in seconds) of a pattern's marks, a little off the grid.

    They are swung as the style says; some begin before 0.
    """
    step = 15 / style["bpm"]
    marks = [i for i, mark in enumerate(pattern) if mark == "x"]
    for bar in range(int(SECONDS / (16 * step)) + 2):
        for i in marks:
            late = min(style["swing"], 1) * {2: 0.67, 3: 0.33}.get(i % 4, 0)
            place = 16 * (bar - style["start"]) + i + late
            start = place * step + 0.006 * rng.standard_normal()
            if start < SECONDS:
                yield bar, i, start


def _drums(style: dict, rng: np.random.Generator) -> np.ndarray:
    t = np.arange(int(0.4 * SAMPLE_RATE)) / SAMPLE_RATE
    kick, snare, hat = _kit(style, rng, t)
    rest = rng.integers(-8, 8)  # half of the clips have a bar with cymbals only
    out = np.zeros(N)
    levels = (1, 0.8, style["hats"])
    for sound, pattern, level in zip((kick, snare, hat), DRUMS[style["drums"]], levels):
        for bar, i, start in _grid(style, pattern, rng):
            if start < 0 or rng.random() < 0.07 or (bar == rest and sound is not hat):
                continue
            at = int(start * SAMPLE_RATE)
            accent = rng.uniform(0.6, 1)
            if i % 4 != 0:  # between the beats
                accent *= 0.8
            end = min(N, at + len(t))
            out[at:end] += level * accent * sound[: end - at]
    return out


def _kit(style: dict, rng: np.random.Generator, t: np.ndarray):
    """The sounds of kick, snare and cymbal at the times t."""
    noise = rng.standard_normal(len(t))
    tune, ring = rng.uniform(0.85, 1.2), rng.uniform(0.7, 1.4)
    falling = 48 * t + 4 * (1 - np.exp(-t / 0.03))
    kick = np.sin(2 * np.pi * tune * falling) * np.exp(-t / (0.09 * ring))
    body = np.sin(2 * np.pi * 190 * tune * t) * np.exp(-t / 0.06)
    rattle = 0.5 * _filter(noise, [800 * tune, 7000], "bandpass") * np.exp(-t / (0.07 * ring))
    open_hat = style["drums"] in ("swing", "rock")
    fade = np.exp(-t / (0.03 + 0.05 * ring * open_hat))
    return kick, 0.5 * body + rattle, _filter(noise, 6000, "highpass") * fade


def _play(notes: list, spectrum, rng, attack: float, decay: float, vibrato=0.0) -> np.ndarray:
    """Samples (N,) of notes (start s, length s, MIDI pitch, level).

    spectrum(k, hertz) : levels of the harmonics k of a note; a struck note loses the high ones
        first. Each note reads one period of its wave at its pitch.
    """
    out = np.zeros(N)
    for start, length, pitch, level in notes:
        hertz = 440 * 2 ** ((pitch - 69) / 12)
        bright, dull = _waves(spectrum, hertz)
        at = int(start * SAMPLE_RATE)
        ends = min(N - at, int((length + 0.05) * SAMPLE_RATE))
        t = np.arange(max(0, -at), ends) / SAMPLE_RATE
        bend = vibrato * 0.06 * hertz * (1 - np.cos(2 * np.pi * 5.5 * t)) / (2 * np.pi * 5.5)
        index = ((hertz * t + bend + rng.random()) * WAVE).astype(int) & (WAVE - 1)
        fade = np.exp(-t / (0.5 * decay))
        tone = fade * bright[index] + (1 - fade) * dull[index]
        rise, fall = np.clip(t / attack, 0, 1), np.clip((length + 0.05 - t) / 0.05, 0, 1)
        tone *= np.exp(-t / decay) * rise * fall
        out[max(0, at) : max(0, at) + len(t)] += level * tone
    return out


def _waves(spectrum, hertz: float) -> np.ndarray:
    """One period (2, WAVE) of a note: as it is struck, and as it dies away."""
    k = np.arange(1, max(2, min(60, int(10000 / hertz))))
    struck_and_dying = np.stack([np.ones(len(k)), np.exp(-0.25 * k)])
    wave = np.zeros((2, WAVE // 2 + 1), complex)
    wave[:, 1 : len(k) + 1] = -0.5j * WAVE * spectrum(k, hertz) * struck_and_dying
    return np.fft.irfft(wave)


def _scale(style: dict) -> list[int]:
    if style["chords"] == "blues":
        return [0, 2, 4, 5, 7, 9, 10]
    if style["major"]:
        return [0, 2, 4, 5, 7, 9, 11]
    return [0, 2, 3, 5, 7, 8, 10]


def _semitones(scale: list[int], degree: int) -> int:
    """Of a degree of the scale above its root; degree 7 is the octave."""
    return scale[degree % 7] + 12 * (degree // 7)


def _root(style: dict) -> int:
    return style["key"] - 12 * (style["key"] > 6)


def _chord(style: dict, degree: int) -> list[int]:
    """MIDI pitches, root first, near C3."""
    size, scale = CHORDS[style["chords"]][1], _scale(style)
    base = 48 + _root(style)
    if size == 0:
        return [base + scale[degree] + up for up in (0, 7, 12)]
    return [base + _semitones(scale, degree + 2 * i) for i in range(size)]


def _degrees(style: dict) -> list[int]:
    choices = CHORDS[style["chords"]][0]
    return choices[int(style["start"] * 1000) % len(choices)]


def _comp(style: dict, rng: np.random.Generator) -> np.ndarray:
    """The chords, all at once or one note after the other."""
    pattern, kind, steps, attack, decay = COMP[style["comp"]]
    length, degrees, notes = steps * 15 / style["bpm"], _degrees(style), []
    apart = 0.012 * (style["comp"] == "strum")
    repeats = 4 if kind == "cycle4" else 1
    for count, (bar, _, start) in enumerate(_grid(style, pattern, rng)):
        chord = _chord(style, degrees[bar % 4])
        level = rng.uniform(0.6, 1)
        if kind == "chord":
            notes += [(start + apart * i, length, pitch, level) for i, pitch in enumerate(chord)]
        else:
            pitch = [*chord, chord[0] + 12][count // repeats % 4] + 12
            notes.append((start, length, pitch, level))
    notes = [note for note in notes if note[0] < SECONDS]
    track = _play(notes, lambda k, _: k ** -style["tilt"], rng, attack, decay)
    gain = 25 * min(style["drive"], 1) ** 2
    if gain <= 0.5:
        return track
    return _filter(np.tanh(gain * _unit(track)), 6000, "lowpass")


def _bass(style: dict, rng: np.random.Generator) -> np.ndarray:
    line, degrees, notes = style["line"], _degrees(style), []
    steps = {"eighths": 1.8, "offbeat": 1.8, "walk": 3.5}.get(line, 7)
    for bar, i, start in _grid(style, BASS[line], rng):
        chord = _chord(style, degrees[bar % 4])
        pitch = chord[0]
        if line == "walk":
            pitch = chord[(i // 4) % len(chord)]
        pitch = pitch - 12 - 12 * (pitch > 55)
        notes.append((start, steps * 15 / style["bpm"], pitch, rng.uniform(0.7, 1)))
    tilt = {"sub": 3.0}.get(line, 1.6)
    return _play(notes, lambda k, _: k**-tilt, rng, 0.006, 0.9)


def _lead(style: dict, rng: np.random.Generator) -> np.ndarray:
    """Two bars of melody that come again, varied."""
    tilt, odd, vibrato, attack, decay, busy, octave, formants = LEAD[style["lead"]]
    scale, degrees = _scale(style), _degrees(style)
    motif = []
    for _ in range(16):
        motif.append((rng.random() < busy, int(rng.integers(-2, 3)), rng.uniform(0.7, 1)))
    notes, place = [], int(rng.integers(0, 7))
    for bar, i, start in _grid(style, "x.x.x.x.x.x.x.x.", rng):
        sounds, move, level = motif[(8 * bar + i // 2) % 16]
        if sounds == (rng.random() < 0.12):
            continue
        if i == 0:
            place = degrees[bar % 4] + 2 * int(rng.integers(0, 3))
        else:
            place = int(np.clip(place + move, -3, 9))
        pitch = octave + _root(style) + _semitones(scale, place)
        if style["lead"] == "rap":
            pitch = octave + 2 * rng.standard_normal()
        notes.append((start, rng.choice([1.8, 1.8, 3.8]) * 15 / style["bpm"], pitch, level))

    def spectrum(k, hertz):
        levels = k**-tilt
        if odd:
            levels = levels * (k % 2)
        if not formants:
            return levels
        vowel = VOWELS[rng.integers(len(VOWELS))]
        distance = (k[:, None] * hertz - vowel) / [120, 180, 260]
        return levels * (0.05 + (np.exp(-(distance**2)) * [1, 0.8, 0.6]).sum(axis=1))

    return _play(notes, spectrum, rng, attack, decay, vibrato)
