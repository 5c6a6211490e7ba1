"""From sound to the lab's arrays: what notebooks 01 to 03 teach.

The lab's extractor: librosa at 22 050 Hz mono, 128 mel bands (n_fft 2048, hop 512) in dB against the clip's own
maximum, 12 chroma rows of a constant-Q transform at the same hop; beat-synced arrays are medians between beats.
"""

from __future__ import annotations

from pathlib import Path

import librosa
import numpy as np
import soundfile

from .corpora.layout import N_MELS

SAMPLE_RATE = 22050  # Hz
N_FFT = 2048  # samples of a frame
HOP_LENGTH = 512  # samples between frames: 23 ms
FRAME_RATE = SAMPLE_RATE / HOP_LENGTH  # columns a second


class AudioError(ValueError):
    """A clip cannot be used; the message names it, what is wrong and what to do."""


def extract(source, sr: int | None = None, beats: bool = True) -> tuple[np.ndarray, np.ndarray | None]:
    """Fused spectrogram of a clip, as the lab's extractor makes it.

    source : path of an audio file, or samples (n,) or (channels, n): float in -1..1, or integer PCM
    sr : rate of given samples in Hz (22 050 if None); a file knows its own
    beats : also compute the beat-synced array (most of the time goes there)
    Returns (140, T) float32, rows 0-127 mel in dB (-80..0) and 128-139 chroma (0..1), and the same as medians
    between beats, (140, B), or None. Raises AudioError. Notebooks: 01, 02, 03.
    """
    if isinstance(source, (str, Path)):
        return _extract(load_audio(source), str(source), beats)
    return _extract(_to_mono(np.asarray(source), sr or SAMPLE_RATE), "the samples", beats)


def _extract(y: np.ndarray, name: str, beats: bool = True) -> tuple[np.ndarray, np.ndarray | None]:
    if not np.isfinite(y).all():
        raise AudioError(f"{name}: NaN or infinite samples; export the audio again")
    if len(y) < N_FFT:
        raise AudioError(f"{name}: {len(y)} samples at 22050 Hz are less than a frame of {N_FFT}; give a longer clip")
    power = librosa.feature.melspectrogram(y=y, sr=SAMPLE_RATE, n_fft=N_FFT, hop_length=HOP_LENGTH, n_mels=N_MELS)
    if power.max() <= 1e-10:  # the floor of power_to_db: all of it would come out as 0 dB, the loudest
        raise AudioError(f"{name}: silent; leave it out, or use another part of the track")
    chroma = librosa.feature.chroma_cqt(y=y, sr=SAMPLE_RATE, hop_length=HOP_LENGTH)
    frames = min(power.shape[1], chroma.shape[1])
    power, chroma = power[:, :frames], chroma[:, :frames]
    full = _fuse(power, chroma)
    if not beats:
        return full, None
    at = beat_frames(y)
    return full, _fuse(beat_sync(power, at), beat_sync(chroma, at))


def load_audio(path: str | Path, seconds: float | None = None) -> np.ndarray:
    """Samples (n,) float32 at 22 050 Hz, mono; of a longer file only the middle `seconds`. Raises AudioError."""
    path = Path(path)
    if not path.is_file():
        raise AudioError(f"{path}: no such file; check the name")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: empty file; copy it again")
    try:
        # libsndfile reads all but m4a, and says more of a bad file than librosa's fallback.
        whole = librosa.get_duration(path=path) if path.suffix.lower() == ".m4a" else soundfile.info(path).duration
        offset = max(0.0, (whole - seconds) / 2) if seconds else 0.0
        return librosa.load(path, sr=SAMPLE_RATE, mono=True, offset=offset, duration=seconds)[0]
    except librosa.ParameterError as error:  # of its check of the samples
        raise AudioError(f"{path}: NaN or infinite samples ({error}); export the audio again") from error
    except Exception as error:  # each decoder has errors of its own, and a damaged file can raise any of them
        why = str(error) or type(error).__name__
        raise AudioError(
            f"{path}: not readable as audio ({why}); convert it to wav or flac (m4a needs ffmpeg)"
        ) from error


def _to_mono(samples: np.ndarray, sr: int) -> np.ndarray:
    if samples.dtype.kind in "iu":
        half = 2.0 ** (8 * samples.dtype.itemsize - 1)
        samples = samples / half - (samples.dtype.kind == "u")  # unsigned PCM is centred on its middle
    y = librosa.to_mono(np.array(samples, dtype=np.float32))  # a copy: librosa may not take read-only arrays
    if sr == SAMPLE_RATE or not np.isfinite(y).all():
        return y
    return librosa.resample(y, orig_sr=sr, target_sr=SAMPLE_RATE)


def beat_frames(y: np.ndarray) -> np.ndarray:
    """Frame numbers of the beats (B,), tracked on the percussive part of samples (n,) at 22 050 Hz."""
    percussive = librosa.effects.percussive(y)
    return librosa.beat.beat_track(y=percussive, sr=SAMPLE_RATE, hop_length=HOP_LENGTH)[1]


def beat_sync(S: np.ndarray, beats: np.ndarray) -> np.ndarray:
    """Median of a spectrogram between beats.

    S : (n_bins, T) power (not dB) or chroma; beats : frame numbers, ascending
    Returns (n_bins, len(beats) + 1): what lies before the first beat and after the last counts too, where there is any.
    After McFee & Ellis 2014, sec. 2. Notebook: 02.
    """
    edges = librosa.util.fix_frames(beats, x_min=0, x_max=S.shape[1])
    return librosa.util.sync(S, edges, aggregate=np.median, pad=False)


def _fuse(power: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    return np.vstack([librosa.power_to_db(power, ref=np.max), chroma]).astype(np.float32)


def split_mel_chroma(S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(140, T) fused -> (128, T) mel in dB, (12, T) chroma; views, not copies."""
    return S[:N_MELS], S[N_MELS:]


def resynthesise(mel: np.ndarray, seed: int = 0) -> np.ndarray:
    """Samples (n,) at 22 050 Hz with a mel spectrogram close to `mel` (128, T) in dB; Griffin-Lim guesses phases."""
    magnitude = librosa.feature.inverse.mel_to_stft(librosa.db_to_power(np.array(mel)), sr=SAMPLE_RATE, n_fft=N_FFT)
    return librosa.griffinlim(magnitude, hop_length=HOP_LENGTH, n_iter=32, random_state=seed)
