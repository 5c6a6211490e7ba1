"""Classical descriptors of a clip, computed from its spectrogram alone: the strong baseline that needs no network.

Six blocks, each of one idea: statistics of the rows, modulation spectrum (how fast each band moves), rhythm and
dynamics, tonality, chords, timbre (MFCC). A support vector machine sees each block with the same weight.
"""

from __future__ import annotations

import numpy as np
from joblib import Parallel, delayed
from scipy.fft import dct
from scipy.signal import stft
from scipy.stats import skew
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC, SVR

from .audio import HOP_LENGTH, SAMPLE_RATE
from .datasets import N_MELS, SpectrogramDataset

FRAME_RATE = SAMPLE_RATE / HOP_LENGTH  # columns a second of the full-length arrays
# Krumhansl and Kessler's (1982) ratings of how well each pitch class fits a major and a minor key.
MAJOR = np.array([6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88])
MINOR = np.array([6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17])
# Chords and scales as sets of semitones above their root.
HARMONIES = {
    "major": (0, 4, 7), "minor": (0, 3, 7), "diminished": (0, 3, 6), "augmented": (0, 4, 8), "suspended": (0, 5, 7),
    "dominant seventh": (0, 4, 7, 10), "major seventh": (0, 4, 7, 11), "minor seventh": (0, 3, 7, 10),
    "major scale": (0, 2, 4, 5, 7, 9, 11), "harmonic minor": (0, 2, 3, 5, 7, 8, 11), "pentatonic": (0, 2, 4, 7, 9),
}  # fmt: skip
MODULATIONS = np.geomspace(0.3, 16, 11)  # Hz, edges: from a phrase to a drum roll


def descriptors(ds: SpectrogramDataset, jobs: int = 1) -> dict[str, np.ndarray]:
    """Block name -> (N, d) for the full-length clips of `ds` (all 140 rows are used, whatever `ds.rows`)."""
    fused = ds.with_rows("fused")
    clips = (fused[i][0].numpy() for i in range(len(fused)))
    blocks = Parallel(n_jobs=jobs)(delayed(describe_clip)(clip) for clip in clips)
    return {name: np.nan_to_num(np.array([block[name] for block in blocks])) for name in blocks[0]}


def describe_clip(x: np.ndarray) -> dict[str, np.ndarray]:
    """The six blocks of one clip (T, 140), each a vector."""
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
    """Mean, deviation and mean absolute frame-to-frame change of each column of (T, d)."""
    change = np.abs(np.diff(x, axis=0)).mean(0) if len(x) > 1 else np.zeros(x.shape[1])
    return [x.mean(0), x.std(0), change]


def modulation_spectrum(mel: np.ndarray) -> np.ndarray:
    """Log strength of 10 modulation rates in 16 bands of mel rows (160,)."""
    bands = np.maximum(mel.reshape(len(mel), 16, -1).mean(2), -60)  # below -60 dB only noise moves
    window = min(256, len(bands))
    rates, _, spectra = stft(bands - bands.mean(0), FRAME_RATE, nperseg=window, nfft=512, axis=0, boundary=None)
    strength = np.abs(spectra).mean(-1)  # (rates, 16)
    which = np.digitize(rates, MODULATIONS)
    return np.log(np.concatenate([strength[which == i].mean(0) for i in range(1, len(MODULATIONS))]) * window + 1e-3)


def rhythm(mel: np.ndarray) -> np.ndarray:
    """Pulse and shape of three onset envelopes: all rows, the lowest 20, the highest 38 (24,)."""
    rise = np.maximum(np.diff(mel, axis=0, prepend=mel[:1]), 0)
    result = []
    for envelope in (rise.mean(1), rise[:, :20].mean(1), rise[:, 90:].mean(1)):
        centred = envelope - envelope.mean()
        power = np.abs(np.fft.rfft(centred, 2 * len(centred))) ** 2
        correlation = np.fft.irfft(power)[: len(centred)] / (centred @ centred + 1e-9)
        lags = np.arange(int(0.25 * FRAME_RATE), min(int(2 * FRAME_RATE), len(centred)))
        if len(lags) == 0:  # shorter than a beat
            return np.zeros(24)
        pulse = correlation[lags]
        # People tap near 120 beats a minute: a log-normal weight there settles which of the multiples is the beat.
        beat = np.argmax(pulse * np.exp(-0.5 * (np.log2(lags / FRAME_RATE / 0.5) / 0.9) ** 2))
        peaks = np.mean(np.diff((centred > envelope.std()).astype(int)) > 0)
        result += [
            pulse[beat],
            60 * FRAME_RATE / lags[beat],
            pulse.max(),
            pulse.std(),
            envelope.mean(),
            envelope.std(),
            skew(envelope),
            peaks,
        ]
    return np.array(result)


def dynamics(mel: np.ndarray) -> np.ndarray:
    """Level, brightness, spread and flatness over time: five statistics each (20,)."""
    power, rows = 10 ** (mel / 10), np.arange(N_MELS)
    total = power.sum(1)
    centroid = power @ rows / total
    spread = np.sqrt((power * (rows - centroid[:, None]) ** 2).sum(1) / total)
    flatness = mel.mean(1) - 10 * np.log10(power.mean(1))
    curves = np.column_stack([10 * np.log10(total), centroid, spread, flatness])
    return np.concatenate([*moments(curves), *np.percentile(curves, [10, 90], axis=0)])


def tonality(chroma: np.ndarray) -> np.ndarray:
    """Fit to a major and a minor key, clarity of harmony, profile relative to the tonic, intervals (32,)."""
    profile = chroma.mean(0)
    major, minor = _key_fit(profile)
    seconds = [chroma[i : i + 128].mean(0) for i in range(0, max(1, len(chroma) - 127), 64)]
    local = np.array([[fit.max() for fit in _key_fit(part)] for part in seconds])
    leaning = local[:, 0] - local[:, 1]
    shares = chroma / (chroma.sum(1, keepdims=True) + 1e-6)
    entropy = -(shares * np.log(shares + 1e-6)).sum(1)
    change = [np.abs(chroma[k:] - chroma[:-k]).mean() if len(chroma) > k else 0 for k in (4, 22, 43)]
    intervals = [(shares * np.roll(shares, step, axis=1)).sum(1).mean() for step in range(1, 7)]
    tonic = np.roll(profile, -int(np.argmax(np.maximum(major, minor)))) / (profile.sum() + 1e-6)
    return np.array([
        major.max(), minor.max(), major.max() - minor.max(), leaning.mean(), leaning.std(), (leaning > 0).mean(),
        entropy.mean(), entropy.std(), chroma.mean(), chroma.std(),
        np.sort(profile)[-4:].sum() / (profile.sum() + 1e-6),
        *change, *intervals, *tonic,
    ])  # fmt: skip


def _key_fit(profile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Correlation of a mean chroma vector with the 12 major and the 12 minor keys."""
    if profile.std() == 0:
        return np.zeros(12), np.zeros(12)
    keys = lambda template: np.array([np.corrcoef(np.roll(template, key), profile)[0, 1] for key in range(12)])  # noqa: E731
    return keys(MAJOR), keys(MINOR)


def chords(chroma: np.ndarray) -> np.ndarray:
    """How well chords and scales fit windows of 1/4, 1 and 4 s, and how they change (69,)."""
    templates = _templates()
    result = []
    for width in (11, 43, 172):
        count = max(1, len(chroma) // width)
        windows = np.array([part.mean(0) for part in np.array_split(chroma[: max(count * width, 1)], count)])
        centred = windows - windows.mean(1, keepdims=True)
        centred /= np.linalg.norm(centred, axis=1, keepdims=True) + 1e-6
        fits = np.einsum("wp,hkp->hwk", centred, templates)  # windows, harmonies, the 12 roots
        best = fits.max(2)  # (harmonies, windows)
        lean = best[0] - best[1]  # major against minor
        triad = np.concatenate(list(fits[:2]), axis=1).argmax(1)  # one of 24
        share = np.bincount(triad, minlength=24) / len(triad)
        result += [*best.mean(1), lean.mean(), lean.std(), (lean > 0).mean(), -(share * np.log(share + 1e-9)).sum()]
        moves = np.linalg.norm(np.diff(_tonnetz(windows), axis=0), axis=1) if count > 1 else np.zeros(1)
        result += [
            np.mean(np.diff(triad) != 0) if count > 1 else 0.0,
            np.sort(share)[-3:].sum(),
            moves.mean(),
            moves.std(),
        ]
        result += list(np.linalg.norm(_tonnetz(windows).reshape(count, 3, 2), axis=2).mean(0)) + [best.max(0).mean()]
    return np.array(result)


def _templates() -> np.ndarray:
    """Each harmony on each root, centred and of unit length: (harmonies, 12 roots, 12 pitch classes)."""
    shapes = np.zeros((len(HARMONIES), 12))
    for row, semitones in zip(shapes, HARMONIES.values(), strict=True):
        row[list(semitones)] = 1
    shapes -= shapes.mean(1, keepdims=True)
    shapes /= np.linalg.norm(shapes, axis=1, keepdims=True)
    return np.stack([np.roll(shapes, root, axis=1) for root in range(12)], axis=1)


def _tonnetz(windows: np.ndarray) -> np.ndarray:
    """Tonal centroid (windows, 6): circles of fifths, minor thirds and major thirds (Harte, Sandler & Gasser 2006)."""
    angles = np.arange(12)[:, None] * np.array([7 / 6, 3 / 2, 2 / 3]) * np.pi
    basis = np.stack([np.sin(angles), np.cos(angles)], axis=2) * np.array([1, 1, 0.5])[:, None]
    shares = windows / (windows.sum(1, keepdims=True) + 1e-6)
    return shares @ basis.reshape(12, 6)


def timbre(mel: np.ndarray) -> np.ndarray:
    """Statistics of 20 MFCCs, and the correlations between the first 12 (126,)."""
    mfcc = dct(mel, axis=1, norm="ortho")[:, :20]
    correlation = np.corrcoef(mfcc[:, :12].T) if len(mfcc) > 1 else np.zeros((12, 12))
    return np.concatenate([*moments(mfcc), correlation[np.triu_indices(12, 1)]])


def descriptor_machine(blocks: dict[str, np.ndarray], task: str):
    """An untrained support vector machine for rows `join(blocks)`: SVC for genre, SVR for one affect axis."""
    sizes = [block.shape[1] for block in blocks.values()]
    weights = np.concatenate([np.full(size, size**-0.5) for size in sizes])  # each block weighs the same in a distance
    gamma = 1 / len(sizes)
    machine = SVC(C=3, gamma=gamma) if task == "genre" else SVR(C=0.3, epsilon=0.03, gamma=gamma)
    return make_pipeline(StandardScaler(), FunctionTransformer(lambda rows: rows * weights), machine)


def join(blocks: dict[str, np.ndarray]) -> np.ndarray:
    """The blocks side by side, (N, d)."""
    return np.concatenate(list(blocks.values()), axis=1)


def row_statistics(ds: SpectrogramDataset) -> np.ndarray:
    """(N, 3 F): mean, deviation and mean absolute frame-to-frame change of each row of the spectrogram."""
    return np.array([np.concatenate(moments(ds[i][0].numpy())) for i in range(len(ds))])


def svm_baseline(train: SpectrogramDataset, test: SpectrogramDataset) -> np.ndarray:
    """A support vector machine on row statistics, with no tuning: C = 10 for genre, C = 0.1 for each affect axis.

    Returns one-hot decisions (N, n_classes) for genre, values (N, k) for affect.
    """
    features, targets, unseen = row_statistics(train), train.y.numpy(), row_statistics(test)
    if train.task == "genre":
        pred = make_pipeline(StandardScaler(), SVC(C=10)).fit(features, targets).predict(unseen)
        return np.eye(len(train.classes))[pred]
    machine = make_pipeline(StandardScaler(), SVR(C=0.1))
    return np.column_stack([machine.fit(features, column).predict(unseen) for column in targets.T])


def majority_baseline(train: SpectrogramDataset, test: SpectrogramDataset) -> np.ndarray:
    """Always the most frequent class of the training split (one-hot (N, n_classes)), or its mean values (N, k)."""
    y = train.y.numpy()
    if train.task == "genre":
        return np.eye(len(train.classes))[np.full(len(test), np.bincount(y).argmax())]
    return np.tile(y.mean(0), (len(test), 1))
