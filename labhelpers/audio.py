"""From sound to the lab's arrays: what notebooks 01 to 03 teach.

The lab's extractor: librosa at 22 050 Hz mono, 128 mel bands (n_fft 2048, hop 512) in dB against
the clip's own maximum, 12 chroma rows of a constant-Q transform at the same hop; beat-synced arrays
are medians between beats.
"""

from __future__ import annotations

from pathlib import Path

import librosa
import numpy as np
from scipy.ndimage import median_filter

from .corpora.layout import MAX_FRAMES, N_MELS
from .decode import AudioError, decode

SAMPLE_RATE = 22050  # Hz
N_FFT = 2048  # samples of a frame
HOP_LENGTH = 512  # samples between frames: 23 ms
FRAME_RATE = SAMPLE_RATE / HOP_LENGTH  # columns a second
TUNING_BINS = 36  # an octave, where librosa's chroma looks for the tuning
HPSS_WIDTH = 31  # frames or bins: of librosa's medians, after Fitzgerald 2010


def extract(source, sr: int | None = None, beats: bool = True, seconds: float | None = None):
    """Fused spectrogram of a clip, as the lab's extractor makes it. Notebooks: 01, 02, 03.

    source : path of an audio file, or samples (n,) or (channels, n): float in -1..1, or integer PCM
    sr : rate of given samples in Hz (22 050 if None); a file knows its own
    beats : also compute the beat-synced array (most of the time goes there)
    seconds : of a longer file, the middle that is used; None = all of it
    Returns (140, T) float32, rows 0-127 mel in dB (-80..0) and 128-139 chroma (0..1), and the same
    as medians between beats, (140, B), or None. Raises AudioError.
    """
    if isinstance(source, (str, Path)):
        name, y = str(source), load_audio(source, seconds)
    else:
        name = "the samples"
        y = _to_mono(np.asarray(source), sr or SAMPLE_RATE, name)
    if len(y) < N_FFT:
        raise AudioError(
            f"{name}: {len(y)} samples at 22050 Hz are less than a frame of {N_FFT}; "
            "give a longer clip"
        )
    # One transform serves the mel rows and the tuning; librosa would compute it for each.
    magnitude = np.abs(librosa.stft(y, n_fft=N_FFT, hop_length=HOP_LENGTH))
    power = librosa.feature.melspectrogram(S=magnitude**2, sr=SAMPLE_RATE, n_mels=N_MELS)
    if power.max() <= 1e-10:  # the floor of power_to_db: all of it would be 0 dB, the loudest
        raise AudioError(f"{name}: silent; leave it out, or use another part of the track")
    tuning = librosa.estimate_tuning(S=magnitude, sr=SAMPLE_RATE, bins_per_octave=TUNING_BINS)
    chroma = librosa.feature.chroma_cqt(y=y, sr=SAMPLE_RATE, hop_length=HOP_LENGTH, tuning=tuning)
    frames = min(power.shape[1], chroma.shape[1])
    power, chroma = power[:, :frames], chroma[:, :frames]
    full = _fuse(power, chroma)
    if not beats:
        return full, None
    at = beat_frames(y)
    return full, _fuse(beat_sync(power, at), beat_sync(chroma, at))


def load_audio(path: str | Path, seconds: float | None = None) -> np.ndarray:
    """Samples (n,) float32 at 22 050 Hz, mono; of a longer file only the middle `seconds`.

    Reads what libsndfile reads, and where ffmpeg is installed what that reads, whatever the file
    is called. Raises AudioError. Notebook: 01.
    """
    samples, rate = decode(Path(path), seconds, longest=MAX_FRAMES / FRAME_RATE)
    return _to_mono(samples, rate, str(path))


def _to_mono(samples: np.ndarray, sr: int, name: str) -> np.ndarray:
    if samples.dtype.kind in "iu":
        half = 2.0 ** (8 * samples.dtype.itemsize - 1)
        # Unsigned PCM is centred on its middle.
        samples = samples / half - (samples.dtype.kind == "u")
    samples = np.array(samples, np.float32)  # a copy: librosa may not take read-only arrays
    if not np.isfinite(samples).all():
        raise AudioError(f"{name}: NaN or infinite samples; export the audio again")
    return librosa.resample(librosa.to_mono(samples), orig_sr=sr, target_sr=SAMPLE_RATE)


def beat_frames(y: np.ndarray) -> np.ndarray:
    """Frame numbers of the beats (B,), tracked on the percussive part of y. Notebook: 02.

    y : samples (n,) at 22 050 Hz
    """
    struck = percussive(y)
    return librosa.beat.beat_track(y=struck, sr=SAMPLE_RATE, hop_length=HOP_LENGTH)[1]


def percussive(y: np.ndarray) -> np.ndarray:
    """The percussive part (n,) of samples (n,): what is struck rather than sustained. Notebook: 02.

    `librosa.effects.percussive(y)` to the last bit, in a fifth of its time: that filters each
    spectrogram twice in two dimensions, of which one is a single row wide.
    """
    magnitude, phase = librosa.magphase(librosa.stft(y))
    sustained = _row_medians(magnitude)  # smooth along time
    struck = _row_medians(np.ascontiguousarray(magnitude.T)).T  # smooth along frequency
    share = librosa.util.softmask(struck, sustained, power=2, split_zeros=True)
    return librosa.istft(magnitude * share * phase, dtype=y.dtype, length=len(y))


def _row_medians(S: np.ndarray) -> np.ndarray:
    return np.array([median_filter(row, HPSS_WIDTH, mode="reflect") for row in S])


def beat_sync(S: np.ndarray, beats: np.ndarray) -> np.ndarray:
    """Median of a spectrogram between beats. Notebook: 02.

    S : (n_bins, T) power (not dB) or chroma; beats : frame numbers, ascending
    Returns (n_bins, len(beats) + 1): what lies before the first beat and after the last counts too,
    where there is any. After McFee & Ellis 2014, sec. 2.
    """
    edges = librosa.util.fix_frames(beats, x_min=0, x_max=S.shape[1])
    return librosa.util.sync(S, edges, aggregate=np.median, pad=False)


def _fuse(power: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    return np.vstack([librosa.power_to_db(power, ref=np.max), chroma]).astype(np.float32)


def split_mel_chroma(S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(140, T) fused -> (128, T) mel in dB, (12, T) chroma; views. Notebooks: 01, 03."""
    return S[:N_MELS], S[N_MELS:]


def resynthesise(mel: np.ndarray, seed: int = 0) -> np.ndarray:
    """Samples (n,) at 22 050 Hz with a mel spectrogram close to `mel` (128, T) in dB.

    Griffin-Lim guesses the phases. Notebook: 07.
    """
    power = librosa.db_to_power(np.array(mel))
    magnitude = librosa.feature.inverse.mel_to_stft(power, sr=SAMPLE_RATE, n_fft=N_FFT)
    return librosa.griffinlim(magnitude, hop_length=HOP_LENGTH, n_iter=32, random_state=seed)
