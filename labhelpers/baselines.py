"""Classical baselines: what a network must beat to be of use.

The descriptors of a clip come from its spectrogram alone. They are six blocks of one idea each:
statistics of the rows, modulation (how fast each band moves), rhythm, tonality, chords, timbre.
"""

from __future__ import annotations

import json
from pathlib import Path

import librosa
import numpy as np
import pandas as pd
from scipy.stats import skew
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR

from .audio import FRAME_RATE, N_MELS
from .clips import FEATURES, Clips

# How well each pitch class fits a major and a minor key (Krumhansl & Kessler 1982).
MAJOR = np.array([6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88])
MINOR = np.array([6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17])
# Which of the 12 semitones from the root a chord or a scale holds; the triads come first.
HARMONIES = json.loads(Path(__file__).with_name("harmonies.json").read_text())
MODULATIONS = np.geomspace(0.3, 16, 11)  # Hz, edges: from a phrase to a drum roll
CHORD_WINDOWS = (11, 43, 172)  # frames: 1/4, 1 and 4 s
BOUND = 3.0  # standard deviations: an outlier must not make a clip unlike all others


# --- baselines ------------------------------------------------------------------------------------


def majority_baseline(train: Clips, test: Clips) -> np.ndarray:
    """Always the commonest class of the training clips, or their mean values. Notebooks: 06, 08.

    Returns one-hot decisions (N, n_classes) for genre, values (N, 3) for affect.
    """
    y = train.y.numpy()
    row = y.mean(0)
    if train.task == "genre":
        row = np.eye(len(train.classes))[np.bincount(y).argmax()]
    return np.tile(row, (len(test), 1))


def svm_baseline(train: Clips, test: Clips, features: str = "fused") -> np.ndarray:
    """A support vector machine on row statistics, without tuning. Notebooks: 06, 08.

    Returns one-hot decisions (N, n_classes) for genre, values (N, 3) for affect.
    """
    y = train.y.numpy()
    known, unseen = row_statistics(train, features), row_statistics(test, features)
    scaler = StandardScaler().fit(known)
    known, unseen = scaler.transform(known), scaler.transform(unseen)
    if train.task == "genre":
        codes = SVC(C=10).fit(known, y).predict(unseen)
        return np.eye(len(train.classes))[codes]
    return np.column_stack([SVR(C=0.1).fit(known, axis).predict(unseen) for axis in y.T])


def row_statistics(clips: Clips, features: str = "fused") -> np.ndarray:
    """(N, 3 F): mean, deviation and mean absolute change of each row. Notebook: 06."""
    columns = FEATURES[features]
    return np.array([moments(x[:, columns].numpy()) for x, _, _ in clips])


class DescriptorMachine:
    """Support vector regression on the blocks of descriptors, one for each column of targets.

    blocks : name -> (N, d), as `descriptors` returns them; blocks weigh alike, however many numbers
        they hold: the kernel is the mean over blocks of a Gaussian of the squared difference
    targets : codes (N,) for genre, learned as one-hot columns; values (N, k) for affect
    classes : names in the order of the codes, for genre
    A file of it holds what it learned from. It learns again when it is loaded, which takes a second
    and needs no pickle. Notebooks: 06, 07, 08, 10.
    """

    def __init__(self, blocks: dict[str, np.ndarray], targets: np.ndarray, classes=()):
        self.blocks, self.targets, self.classes = blocks, targets, list(classes)
        values, C = targets, 1.5  # C and epsilon: by folds over Emotify's training clips
        if self.classes:
            values, C = np.eye(len(self.classes))[targets], 3.0
        self.scalers = {name: StandardScaler().fit(block) for name, block in blocks.items()}
        self.scaler = StandardScaler().fit(values)
        kernel, self.machines = self.likeness(blocks), []
        for column in self.scaler.transform(values).T:
            machine = SVR(kernel="precomputed", C=C, epsilon=0.1)
            self.machines.append(machine.fit(kernel, column))

    def likeness(self, blocks: dict[str, np.ndarray]) -> np.ndarray:
        """(M, N): how alike M clips are to the N that the machine learned from, 0 to 1."""
        kernels = []
        for name, scaler in self.scalers.items():
            given = scaler.transform(blocks[name]).clip(-BOUND, BOUND)
            known = scaler.transform(self.blocks[name]).clip(-BOUND, BOUND)
            kernels.append(rbf_kernel(given, known))
        return np.mean(kernels, axis=0)

    def predict(self, blocks: dict[str, np.ndarray]) -> np.ndarray:
        """Scores (M, n_classes) that sum to 1 for genre, values (M, k) from 0 to 1 for affect."""
        kernel = self.likeness(blocks)
        columns = np.column_stack([machine.predict(kernel) for machine in self.machines])
        values = self.scaler.inverse_transform(columns).clip(0, 1)
        if not self.classes:
            return values
        values += 1e-6  # a clip that is like none of the classes
        return values / values.sum(1, keepdims=True)

    def save(self, path: Path) -> None:
        """Write an `.npz` file."""
        names, classes = list(self.blocks), np.array(self.classes, str)
        np.savez(path, targets=self.targets, classes=classes, names=names, **self.blocks)

    @classmethod
    def load(cls, path: Path) -> DescriptorMachine:
        """The machine of a file. Raises ValueError for a file that holds none."""
        try:
            with np.load(path, allow_pickle=False) as content:
                blocks = {name: content[name] for name in content["names"].tolist()}
                return cls(blocks, content["targets"], content["classes"].tolist())
        except Exception as error:  # numpy raises many kinds for a damaged file
            what = f"not a descriptor machine ({type(error).__name__})"
            raise ValueError(f"{path}: {what}; run the notebook of its name again") from error


# --- descriptors ----------------------------------------------------------------------------------


def descriptors(clips: Clips) -> dict[str, np.ndarray]:
    """Block name -> (N, d) of full-length clips, from all 140 rows. Notebooks: 06, 08."""
    described = pd.DataFrame([describe_clip(x.numpy()) for x, _, _ in clips])
    return {name: np.stack(described[name]) for name in described}


def describe_clip(x: np.ndarray) -> dict[str, np.ndarray]:
    """The six blocks of one clip (T, 140), each a vector of a fixed length. Notebook: 08."""
    mel, chroma = x[:, :N_MELS].astype(float), x[:, N_MELS:].astype(float)
    blocks = {
        "rows": moments(x),
        "modulation": modulation(mel),
        "rhythm": rhythm(mel),
        "tonality": tonality(chroma),
        "chords": np.concatenate([chords(chroma, frames) for frames in CHORD_WINDOWS]),
        "timbre": timbre(mel),
    }
    return {name: np.nan_to_num(block) for name, block in blocks.items()}


def moments(x: np.ndarray) -> np.ndarray:
    """Mean, deviation and mean absolute frame-to-frame change of the columns of (T, d): (3 d,)."""
    change = np.abs(np.diff(x, axis=0)).sum(0) / max(len(x) - 1, 1)
    return np.concatenate([x.mean(0), x.std(0), change])


def modulation(mel: np.ndarray) -> np.ndarray:
    """Log strength of 10 modulation rates in 16 bands of mel rows (160,)."""
    bands = np.maximum(mel, -60).reshape(len(mel), 16, -1).mean(2)  # below -60 dB is only noise
    bands = librosa.util.fix_length((bands - bands.mean(0)).T, size=max(256, len(mel)))
    spectra = np.abs(librosa.stft(bands, n_fft=256, center=False)).mean(-1)  # (16, rates)
    which = np.digitize(librosa.fft_frequencies(sr=FRAME_RATE, n_fft=256), MODULATIONS)
    strength = [spectra[:, which == i].mean(1) for i in range(1, len(MODULATIONS))]
    return np.log(np.concatenate(strength) + 1e-3)


def rhythm(mel: np.ndarray) -> np.ndarray:
    """Pulse and shape of three onset envelopes: all rows, the lowest 20, the highest 38 (24,)."""
    rise = np.maximum(np.diff(mel, axis=0, prepend=mel[:1]), 0)
    parts = [rise, rise[:, :20], rise[:, 90:]]
    return np.concatenate([pulse(part.mean(1)) for part in parts])


def pulse(envelope: np.ndarray) -> np.ndarray:
    """Clarity of the beat, tempo, and the shape of one onset envelope (T,): (8,)."""
    centred, deviation = envelope - envelope.mean(), envelope.std()
    shortest, longest = int(0.25 * FRAME_RATE), int(2 * FRAME_RATE)
    correlation = librosa.autocorrelate(centred) / (centred @ centred + 1e-9)
    correlation = correlation[shortest:longest]
    if len(correlation) == 0:  # shorter than a beat
        return np.zeros(8)
    # People tap near 120 beats per minute: a log-normal weight there chooses among the multiples.
    lags = shortest + np.arange(len(correlation))
    octaves = np.log2(lags / FRAME_RATE / 0.5)
    best = np.argmax(correlation * np.exp(-0.5 * (octaves / 0.9) ** 2))
    above = centred > deviation
    onsets = np.mean(above[1:] & ~above[:-1])
    beat = [correlation[best], 60 * FRAME_RATE / lags[best], correlation.max(), correlation.std()]
    return np.array([*beat, envelope.mean(), deviation, skew(envelope), onsets])


def tonality(chroma: np.ndarray) -> np.ndarray:
    """Fit to keys, clarity of the harmony, its changes, intervals, profile from the tonic (29,)."""
    profile = chroma.mean(0)
    fits = np.array(key_fit(profile))  # major and minor, 12 tonics
    major, minor = fits.max(1)
    tonic = fits.max(0).argmax()
    from_tonic = np.roll(profile, -tonic) / (profile.sum() + 1e-6)
    shares = chroma / (chroma.sum(1, keepdims=True) + 1e-6)
    entropy = -(shares * np.log(shares + 1e-6)).sum(1)
    numbers = [major, minor, major - minor]
    numbers += [entropy.mean(), entropy.std(), chroma.mean(), chroma.std()]
    numbers.append(np.sort(from_tonic)[-4:].sum())
    for lag in (4, 22, 43):  # 1/10, 1/2 and 1 s
        change = np.abs(chroma[lag:] - chroma[:-lag])
        numbers.append(change.sum() / chroma.size)
    for step in range(1, 7):
        together = shares * np.roll(shares, step, axis=1)
        numbers.append(together.sum(1).mean())
    return np.array([*numbers, *from_tonic])


def key_fit(profile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Correlation of a mean chroma vector (12,) with the 12 major and the 12 minor keys.

    Zeros for a constant vector. Notebook: 03.
    """
    if np.ptp(profile) == 0:
        return np.zeros(12), np.zeros(12)
    major, minor = ([np.roll(key, tonic) for tonic in range(12)] for key in (MAJOR, MINOR))
    fits = np.corrcoef([*major, *minor], profile)[-1]
    return fits[:12], fits[12:24]


def chords(chroma: np.ndarray, frames: int) -> np.ndarray:
    """How well chords and scales fit windows of `frames`, and how chords change (17,)."""
    count = max(1, len(chroma) // frames)
    parts = np.array_split(chroma[: count * frames], count)
    windows = centred([part.mean(0) for part in parts], 1e-6)
    fits = np.einsum("wp,hkp->hwk", windows, templates())  # harmonies, windows, the 12 roots
    best = fits.max(2)  # harmonies, windows
    lean = best[0] - best[1]  # major against minor
    triads = np.concatenate([fits[0], fits[1]], axis=1).argmax(1)  # one of 24 in each window
    share = np.bincount(triads, minlength=24) / count
    entropy = -(share * np.log(share + 1e-9)).sum()
    changed = np.mean(np.diff(triads, prepend=triads[:1]) != 0)
    leaning = [lean.mean(), lean.std(), (lean > 0).mean()]
    return np.array([*best.mean(1), best.max(0).mean(), *leaning, entropy, changed])


def centred(rows, least: float = 0.0) -> np.ndarray:
    """Each row without its mean, at length 1 or a little less."""
    rows = rows - np.mean(rows, axis=1, keepdims=True)
    return rows / (np.linalg.norm(rows, axis=1, keepdims=True) + least)


def templates() -> np.ndarray:
    """Each harmony on each root, centred, of unit length: (harmonies, 12 roots, 12 classes)."""
    shapes = centred([[key == "x" for key in keys] for keys in HARMONIES.values()])
    return np.stack([np.roll(shapes, root, axis=1) for root in range(12)], axis=1)


def timbre(mel: np.ndarray) -> np.ndarray:
    """Statistics of 20 MFCCs, and the correlations between the first 12 (126,)."""
    mfcc = librosa.feature.mfcc(S=mel.T, n_mfcc=20)  # (20, T)
    correlation = np.zeros((12, 12))
    if mfcc[:12].std(1).all():
        correlation = np.corrcoef(mfcc[:12])
    return np.concatenate([moments(mfcc.T), correlation[np.triu_indices(12, 1)]])
