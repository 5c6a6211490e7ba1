"""Classical baselines, which every table carries: no network that does not beat them is of use.

Descriptors of a clip are computed from its spectrogram alone, in six blocks of one idea each:
statistics of the rows, modulation spectrum (how fast each band moves), rhythm and dynamics,
tonality, chords, timbre (MFCC). A support vector machine sees each block with the same weight.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import librosa
import numpy as np
from scipy.signal import stft
from scipy.stats import skew
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC, SVR

from .audio import FRAME_RATE
from .corpora.layout import N_MELS
from .datasets import SpectrogramDataset
from .files import atomic

# How well each pitch class fits a major and a minor key (Krumhansl & Kessler 1982).
MAJOR = np.array([6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88])
MINOR = np.array([6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17])
# Chords and scales as sets of semitones above their root.
HARMONIES = {
    "major": (0, 4, 7),
    "minor": (0, 3, 7),
    "diminished": (0, 3, 6),
    "augmented": (0, 4, 8),
    "suspended": (0, 5, 7),
    "dominant seventh": (0, 4, 7, 10),
    "major seventh": (0, 4, 7, 11),
    "minor seventh": (0, 3, 7, 10),
    "major scale": (0, 2, 4, 5, 7, 9, 11),
    "harmonic minor": (0, 2, 3, 5, 7, 8, 11),
    "pentatonic": (0, 2, 4, 7, 9),
}
MODULATIONS = np.geomspace(0.3, 16, 11)  # Hz, edges: from a phrase to a drum roll
CHORD_WINDOWS = (11, 43, 172)  # frames: 1/4, 1 and 4 s
BOUND = 3.0  # deviations that a descriptor may count to lie from its mean
BLOCKS = ("rows", "modulation", "rhythm", "tonality", "chords", "timbre")


# --- baselines ------------------------------------------------------------------------------------


def majority_baseline(train: SpectrogramDataset, test: SpectrogramDataset) -> np.ndarray:
    """Always the commonest class of the training split, or its mean values. Notebook: 06.

    Returns one-hot decisions (N, n_classes) for genre, values (N, k) for affect.
    """
    y = train.y.numpy()
    if train.task == "genre":
        commonest = np.bincount(y).argmax()
        return np.tile(np.eye(len(train.classes))[commonest], (len(test), 1))
    return np.tile(y.mean(0), (len(test), 1))


def svm_baseline(train: SpectrogramDataset, test: SpectrogramDataset) -> np.ndarray:
    """A support vector machine on row statistics, with no tuning. Notebook: 06.

    Returns one-hot decisions (N, n_classes) for genre (C = 10), values (N, k) for affect (C = 0.1).
    """
    features, targets, unseen = row_statistics(train), train.y.numpy(), row_statistics(test)
    if train.task == "genre":
        machine = make_pipeline(StandardScaler(), SVC(C=10))
        codes = machine.fit(features, targets).predict(unseen)
        return np.eye(len(train.classes))[codes]
    machine = make_pipeline(StandardScaler(), SVR(C=0.1))
    columns = [machine.fit(features, column).predict(unseen) for column in targets.T]
    return np.column_stack(columns)


def row_statistics(ds: SpectrogramDataset) -> np.ndarray:
    """(N, 3 F): mean, deviation, mean absolute change between frames. Notebooks: 06, 08."""
    clips = [ds[i][0].cpu().numpy() for i in range(len(ds))]
    return np.array([np.concatenate(moments(clip)) for clip in clips])


class DescriptorMachine:
    """A support vector machine on the six blocks of descriptors. Notebook: 08.

    targets : codes (N,) for genre, values (N, k) for affect, one machine a column
    classes : names in the order of the codes, for genre
    It is saved as what it learned from, and learns again in a second when it is loaded: that needs
    no pickle, which could run code.
    """

    suffix = ".npz"  # of its checkpoints

    def __init__(self, blocks: dict[str, np.ndarray], targets: np.ndarray, classes=()):
        self.blocks, self.targets, self.classes = blocks, np.asarray(targets), list(classes)
        rows = join(blocks)
        columns = [self.targets] if self.classes else self.targets.T
        self.machines = [self._machine().fit(rows, column) for column in columns]

    def _machine(self):
        sizes = [block.shape[1] for block in self.blocks.values()]
        kernel = partial(likeness, ends=np.cumsum(sizes)[:-1])
        # An outlier in one number must not make a clip unlike all others.
        bounded = FunctionTransformer(np.clip, kw_args={"a_min": -BOUND, "a_max": BOUND})
        if self.classes:
            return make_pipeline(StandardScaler(), bounded, SVC(C=3, kernel=kernel))
        return make_pipeline(StandardScaler(), bounded, SVR(C=0.3, epsilon=0.03, kernel=kernel))

    def predict(self, blocks: dict[str, np.ndarray]) -> np.ndarray:
        """One-hot decisions (N, n_classes) for genre, values (N, k) from 0 to 1 for affect.

        blocks : those that it learned from, in any order
        """
        rows = join({name: blocks[name] for name in self.blocks})
        columns = [machine.predict(rows) for machine in self.machines]
        if self.classes:
            return np.eye(len(self.classes))[columns[0]]
        return np.column_stack(columns).clip(0, 1)

    def save(self, path: Path) -> None:
        """Write an `.npz`. Raises OSError with a sentence."""
        names = np.array(list(self.blocks))
        known = {"targets": self.targets, "classes": np.array(self.classes), "names": names}
        with atomic(path) as unfinished, open(unfinished, "wb") as stream:
            np.savez(stream, **known, **self.blocks)

    @classmethod
    def load(cls, path: Path) -> DescriptorMachine:
        """The machine of a file. Raises ValueError with a sentence."""
        try:
            with np.load(path, allow_pickle=False) as content:
                blocks = {name: content[name] for name in content["names"].tolist()}
                return cls(blocks, content["targets"], content["classes"].tolist())
        except Exception as error:  # numpy raises half a dozen kinds for a file that is damaged
            raise ValueError(
                f"{path}: not a descriptor machine ({type(error).__name__}); "
                "run the notebook that its name begins with again"
            ) from error


def likeness(a: np.ndarray, b: np.ndarray, ends) -> np.ndarray:
    """How alike clips are, (N, d) and (M, d) -> (N, M): the mean over blocks that end at `ends`.

    A block's likeness is a Gaussian of its mean squared difference, so each block counts the same,
    and clips that agree in one block alone are still a little alike. Notebook: 08.
    """
    pairs = zip(np.split(a, ends, axis=1), np.split(b, ends, axis=1), strict=True)
    return np.mean([rbf_kernel(ours, theirs) for ours, theirs in pairs], axis=0)


def join(blocks: dict[str, np.ndarray]) -> np.ndarray:
    """The blocks side by side, (N, d). Notebook: 08."""
    return np.concatenate(list(blocks.values()), axis=1)


# --- descriptors ----------------------------------------------------------------------------------


def descriptors(ds: SpectrogramDataset) -> dict[str, np.ndarray]:
    """Block name -> (N, d) of full-length clips; all 140 rows are used. Notebook: 08."""
    fused = ds.with_features("fused")
    clips = [describe_clip(fused[i][0].numpy()) for i in range(len(fused))]
    blocks = {name: np.array([clip[name] for clip in clips]) for name in BLOCKS}
    return {name: np.nan_to_num(block) for name, block in blocks.items()}


def describe_clip(x: np.ndarray) -> dict[str, np.ndarray]:
    """The six blocks of one clip (T, 140), each a vector. Notebook: 08."""
    mel, chroma = x[:, :N_MELS].astype(float), x[:, N_MELS:].astype(float)
    return {
        "rows": np.concatenate(moments(x)),
        "modulation": modulation_spectrum(mel),
        "rhythm": np.concatenate([rhythm(mel), dynamics(mel)]),
        "tonality": tonality(chroma),
        "chords": chords(chroma),
        "timbre": timbre(mel),
    }


def moments(x: np.ndarray) -> list[np.ndarray]:
    """Mean, deviation and mean absolute frame-to-frame change of each column of (T, d).

    Notebook: 08.
    """
    changes = np.abs(np.diff(x, axis=0, prepend=x[:1]))
    change = changes.sum(0) / max(len(x) - 1, 1)
    return [x.mean(0), x.std(0), change]


def modulation_spectrum(mel: np.ndarray) -> np.ndarray:
    """Log strength of 10 modulation rates in 16 bands of mel rows (160,). Notebook: 08."""
    bands = mel.reshape(len(mel), 16, -1).mean(2)
    bands = np.maximum(bands, -60)  # below -60 dB only noise moves
    window = min(256, len(bands))
    rates, _, spectra = stft(
        bands - bands.mean(0), FRAME_RATE, nperseg=window, nfft=512, axis=0, boundary=None
    )
    strength = np.abs(spectra).mean(-1)  # (rates, 16)
    which = np.digitize(rates, MODULATIONS)
    means = [strength[which == i].mean(0) for i in range(1, len(MODULATIONS))]
    return np.log(np.concatenate(means) * window + 1e-3)


def rhythm(mel: np.ndarray) -> np.ndarray:
    """Pulse and shape of three onset envelopes: all rows, the lowest 20, the highest 38 (24,).

    Notebook: 08.
    """
    rise = np.maximum(np.diff(mel, axis=0, prepend=mel[:1]), 0)
    bands = (rise, rise[:, :20], rise[:, 90:])
    return np.concatenate([_pulse(band.mean(1)) for band in bands])


def _pulse(envelope: np.ndarray) -> np.ndarray:
    """Pulse clarity, tempo, and the shape of one onset envelope (8,)."""
    centred = envelope - envelope.mean()
    correlation = librosa.autocorrelate(centred) / (centred @ centred + 1e-9)
    lags = np.arange(int(0.25 * FRAME_RATE), min(int(2 * FRAME_RATE), len(centred)))
    if len(lags) == 0:  # shorter than a beat
        return np.zeros(8)
    pulse = correlation[lags]
    # People tap near 120 beats a minute: a log-normal weight there settles which of the multiples
    # is the beat.
    octaves = np.log2(lags / FRAME_RATE / 0.5)
    tapping = np.exp(-0.5 * (octaves / 0.9) ** 2)
    beat = np.argmax(pulse * tapping)
    above = centred > envelope.std()
    peaks = np.mean(above[1:] & ~above[:-1])
    return np.array(
        [
            pulse[beat],
            60 * FRAME_RATE / lags[beat],
            pulse.max(),
            pulse.std(),
            envelope.mean(),
            envelope.std(),
            skew(envelope),
            peaks,
        ]
    )


def dynamics(mel: np.ndarray) -> np.ndarray:
    """Level, brightness, spread and flatness over time: five statistics each (20,).

    Notebook: 08.
    """
    power, rows = 10 ** (mel / 10), np.arange(N_MELS)
    total = power.sum(1)
    centroid = power @ rows / total
    distance = (rows - centroid[:, None]) ** 2
    width = np.sqrt((power * distance).sum(1) / total)
    flatness = mel.mean(1) - 10 * np.log10(power.mean(1))
    curves = np.column_stack([10 * np.log10(total), centroid, width, flatness])
    return np.concatenate([*moments(curves), *np.percentile(curves, [10, 90], axis=0)])


def tonality(chroma: np.ndarray) -> np.ndarray:
    """Fit to major and minor keys, clarity of harmony, profile from the tonic, intervals (32,).

    Notebook: 08.
    """
    profile = chroma.mean(0)
    major, minor = key_fit(profile)
    begins = range(0, max(1, len(chroma) - 127), 64)
    fits = [key_fit(chroma[begin : begin + 128].mean(0)) for begin in begins]
    leaning = np.array([fit_major.max() - fit_minor.max() for fit_major, fit_minor in fits])
    shares = chroma / (chroma.sum(1, keepdims=True) + 1e-6)
    entropy = -(shares * np.log(shares + 1e-6)).sum(1)
    changes = [_change_after(chroma, frames) for frames in (4, 22, 43)]
    intervals = [(shares * np.roll(shares, step, axis=1)).sum(1).mean() for step in range(1, 7)]
    tonic = int(np.argmax(np.maximum(major, minor)))
    from_tonic = np.roll(profile, -tonic) / (profile.sum() + 1e-6)
    strongest = np.sort(profile)[-4:].sum() / (profile.sum() + 1e-6)
    return np.array(
        [
            major.max(),
            minor.max(),
            major.max() - minor.max(),
            leaning.mean(),
            leaning.std(),
            (leaning > 0).mean(),
            entropy.mean(),
            entropy.std(),
            chroma.mean(),
            chroma.std(),
            strongest,
            *changes,
            *intervals,
            *from_tonic,
        ]
    )


def _change_after(chroma: np.ndarray, frames: int) -> float:
    if len(chroma) <= frames:
        return 0.0
    return np.abs(chroma[frames:] - chroma[:-frames]).mean()


def key_fit(profile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Correlation of a mean chroma vector (12,) with the 12 major and the 12 minor keys.

    Notebook: 03.
    """
    if profile.std() == 0:
        return np.zeros(12), np.zeros(12)
    fits = []
    for template in (MAJOR, MINOR):
        keys = np.array([np.roll(template, tonic) for tonic in range(12)])
        fits.append(np.corrcoef(keys, profile)[-1, :12])
    return fits[0], fits[1]


def chords(chroma: np.ndarray) -> np.ndarray:
    """How well chords and scales fit windows of 1/4, 1 and 4 s, and how they change (69,).

    Notebook: 08.
    """
    templates = _templates()
    return np.concatenate([_chords_of(chroma, frames, templates) for frames in CHORD_WINDOWS])


def _chords_of(chroma: np.ndarray, frames: int, templates: np.ndarray) -> np.ndarray:
    count = max(1, len(chroma) // frames)
    parts = np.array_split(chroma[: count * frames], count)
    windows = np.array([part.mean(0) for part in parts])
    centred = windows - windows.mean(1, keepdims=True)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True) + 1e-6
    fits = np.einsum("wp,hkp->hwk", centred, templates)  # harmonies, windows, the 12 roots
    best = fits.max(2)  # (harmonies, windows)
    lean = best[0] - best[1]  # major against minor
    triad = np.concatenate([fits[0], fits[1]], axis=1).argmax(1)  # one of 24 a window
    share = np.bincount(triad, minlength=24) / len(triad)
    entropy = -(share * np.log(share + 1e-9)).sum()
    centroids = librosa.feature.tonnetz(chroma=windows.T).T  # (windows, 6)
    moves, changed = np.zeros(1), np.zeros(1)
    if count > 1:
        moves = np.linalg.norm(np.diff(centroids, axis=0), axis=1)
        changed = np.diff(triad) != 0
    circles = np.linalg.norm(centroids.reshape(count, 3, 2), axis=2).mean(0)
    return np.array(
        [
            *best.mean(1),
            lean.mean(),
            lean.std(),
            (lean > 0).mean(),
            entropy,
            changed.mean(),
            np.sort(share)[-3:].sum(),
            moves.mean(),
            moves.std(),
            *circles,
            best.max(0).mean(),
        ]
    )


def _templates() -> np.ndarray:
    """Each harmony on each root, centred, of unit length: (harmonies, 12 roots, 12 classes)."""
    shapes = np.zeros((len(HARMONIES), 12))
    for row, semitones in zip(shapes, HARMONIES.values(), strict=True):
        row[list(semitones)] = 1
    shapes -= shapes.mean(1, keepdims=True)
    shapes /= np.linalg.norm(shapes, axis=1, keepdims=True)
    return np.stack([np.roll(shapes, root, axis=1) for root in range(12)], axis=1)


def timbre(mel: np.ndarray) -> np.ndarray:
    """Statistics of 20 MFCCs, and the correlations between the first 12 (126,). Notebook: 08."""
    mfcc = librosa.feature.mfcc(S=mel.T, n_mfcc=20).T
    correlation = np.zeros((12, 12))
    if len(mfcc) > 1:
        correlation = np.corrcoef(mfcc[:, :12].T)
    return np.concatenate([*moments(mfcc), correlation[np.triu_indices(12, 1)]])
