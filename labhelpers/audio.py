"""From sound to the lab's arrays: what notebooks 01 to 03 teach.

The lab's extractor: librosa at 22,050 Hz mono; 128 mel bands (n_fft 2048, hop 512) in dB below the
clip's maximum; 12 chroma rows of a constant-Q transform at the same hop. A beat-synced array holds
the medians between beats.
"""

from __future__ import annotations

import os
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import librosa
import numpy as np
import soundfile
from scipy.ndimage import median_filter

SAMPLE_RATE = 22050  # Hz
N_FFT = 2048  # samples per frame
HOP_LENGTH = 512  # samples between frames: 23 ms
FRAME_RATE = SAMPLE_RATE / HOP_LENGTH  # columns per second
N_MELS = 128  # rows in dB, at most 0
N_CHROMA = 12  # rows from 0 to 1, below them
N_FEATURES = N_MELS + N_CHROMA
SILENCE_DB = -80.0  # the extractor's floor; zero padding would be the loudest value there is
SILENCE = 10 ** (SILENCE_DB / 20)  # standard deviation of samples, below which a clip is silent
LOUDEST = 1e6  # of a sample; audio is within -1..1
TUNING_BINS = 36  # per octave, where librosa's chroma looks for the tuning
HPSS_WIDTH = 31  # frames or bins: of librosa's medians, after Fitzgerald 2010
PADDING = 0.5  # seconds: at most this much of an MP3 is its encoder's padding


class AudioError(ValueError):
    """A clip cannot be used; the message names it, what is wrong and what to do. Notebook: 01."""


def extract(source, *, beats: bool = True, seconds: float | None = None):
    """Fused spectrogram of a clip, as the lab's extractor makes it. Notebooks: 01, 02, 03.

    source : path of an audio file, or samples (n,) or (channels, n) at 22,050 Hz, in -1..1
    beats : also compute the beat-synced array (most of the time goes there)
    seconds : of a longer file, the middle that is used; None = all of it
    Returns (140, T) float32, rows 0-127 mel in dB (-80..0) and 128-139 chroma (0..1), and the same
    as medians between beats, (140, B), or None. Raises AudioError.
    """
    if isinstance(source, (str, Path)):
        name, y = printable(source), load_audio(source, seconds)
    else:
        name = "the samples"
        y = _to_mono(source, SAMPLE_RATE, name)
    if len(y) < N_FFT:
        few = f"{len(y)} samples at 22050 Hz are less than one frame of {N_FFT}"
        raise AudioError(f"{name}: {few}; give a longer clip")
    # One transform serves the mel rows and the tuning; librosa would compute it for each.
    magnitude = np.abs(librosa.stft(y, n_fft=N_FFT, hop_length=HOP_LENGTH))
    power = librosa.feature.melspectrogram(S=magnitude**2, sr=SAMPLE_RATE, n_mels=N_MELS)
    tuning = librosa.estimate_tuning(S=magnitude, sr=SAMPLE_RATE, bins_per_octave=TUNING_BINS)
    chroma = librosa.feature.chroma_cqt(y=y, sr=SAMPLE_RATE, hop_length=HOP_LENGTH, tuning=tuning)
    frames = min(power.shape[1], chroma.shape[1])
    power, chroma = power[:, :frames], chroma[:, :frames]
    full = _fuse(power, chroma)
    if not beats:
        return full, None
    at = beat_frames(y)
    return full, _fuse(beat_sync(power, at), beat_sync(chroma, at))


def beat_frames(y: np.ndarray) -> np.ndarray:
    """Frame numbers of the beats (B,), tracked on the percussive part of y. Notebook: 02.

    y : samples (n,) at 22,050 Hz
    """
    onsets = percussive(y)
    return librosa.beat.beat_track(y=onsets, sr=SAMPLE_RATE, hop_length=HOP_LENGTH)[1]


def percussive(y: np.ndarray) -> np.ndarray:
    """The percussive part (n,) of samples (n,): strokes rather than sustained notes. Notebook: 02.

    `librosa.effects.percussive(y)` to the last bit, in a fifth of its time: librosa filters each
    spectrogram twice in two dimensions, of which one is a single row wide.
    """
    magnitude, phase = librosa.magphase(librosa.stft(y))
    harmonic = _row_medians(magnitude)  # smooth along time
    strokes = _row_medians(np.ascontiguousarray(magnitude.T)).T  # smooth along frequency
    mask = librosa.util.softmask(strokes, harmonic, power=2, split_zeros=True)
    return librosa.istft(magnitude * mask * phase, dtype=y.dtype, length=len(y))


def _row_medians(S):
    return np.array([median_filter(row, HPSS_WIDTH, mode="reflect") for row in S])


def beat_sync(S: np.ndarray, beats: np.ndarray) -> np.ndarray:
    """Median of a spectrogram between beats. Notebook: 02.

    S : (n_bins, T) power (not dB) or chroma; beats : frame numbers, ascending
    Returns (n_bins, len(beats) + 1): the columns before the first beat and after the last count
    too, where there are any. After McFee & Ellis 2014, section 2.
    """
    edges = librosa.util.fix_frames(beats, x_min=0, x_max=S.shape[1])
    return librosa.util.sync(S, edges, aggregate=np.median, pad=False)


def _fuse(power, chroma):
    return np.vstack([librosa.power_to_db(power, ref=np.max), chroma]).astype(np.float32)


def resynthesise(mel: np.ndarray, seed: int = 0) -> np.ndarray:
    """Samples (n,) at 22,050 Hz with a mel spectrogram close to `mel` (128, T) in dB.

    Griffin-Lim guesses the phases. Notebook: 07.
    """
    power = librosa.db_to_power(np.array(mel))
    magnitude = librosa.feature.inverse.mel_to_stft(power, sr=SAMPLE_RATE, n_fft=N_FFT)
    return librosa.griffinlim(magnitude, hop_length=HOP_LENGTH, n_iter=32, random_state=seed)


def fill_numba_cache() -> None:
    """Compile what librosa compiles, in this process alone.

    Two processes that fill numba's cache on disk at once can damage it, and then every later one
    crashes (numba issue 10128). So call this before several processes extract.
    """
    t = np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE
    extract(np.sin(2 * np.pi * 440 * t) * np.exp(-8 * (t % 0.5)))


# --- files ----------------------------------------------------------------------------------------


def load_audio(path: str | Path, seconds: float | None = None) -> np.ndarray:
    """Samples (n,) float32 at 22,050 Hz, mono; of a longer file only the middle `seconds`.

    libsndfile reads the file, whatever its name. Where that fails, or the file's header states
    another length than the file has, FFmpeg's libraries read it (PyAV): they read m4a, wma and
    films, too. Of a damaged file they take what is there. Raises AudioError. Notebook: 01.
    """
    name = printable(path)
    if not Path(path).is_file() or Path(path).stat().st_size == 0:
        raise AudioError(f"{name}: no such file, or an empty file; copy it again")
    for read in (_by_soundfile, _by_pyav):
        try:
            with open(path, "rb") as stream:  # an open file has no name in an unknown encoding
                samples, rate = read(stream, seconds)
            break
        except Exception as error:  # a damaged file can raise anything
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    else:
        raise AudioError(f"{name}: not readable as audio ({reason}); convert it to wav or flac")
    if samples.size == 0:
        raise AudioError(f"{name}: no audio in it; copy it again")
    return _to_mono(samples, rate, name)


def printable(path: str | Path) -> str:
    """A path as text that any terminal and file takes, whatever the name's encoding."""
    return os.fsencode(path).decode("utf-8", "replace")


def _middle(length, rate, seconds):
    """First frame and number of frames to take of a file of `length` frames."""
    if seconds is None or length <= seconds * rate:
        return 0, length
    count = int(seconds * rate)
    return (length - count) // 2, count


def _by_soundfile(stream, seconds):
    """Samples (channels, n) float32 and their rate in Hz. Raises where the header is wrong."""
    with soundfile.SoundFile(stream) as file:
        rate = file.samplerate
        file.seek(file.frames - 1)
        if len(file.read(1)) == 0:
            raise AudioError("its audio ends before its header says")
        if file.format == "MP3" and find_spec("av"):  # libsndfile believes a header that is short
            stream.seek(0)
            if abs(_packet_seconds(stream) - file.frames / rate) > PADDING:
                raise AudioError("its header states another length than its audio has")
        first, count = _middle(file.frames, rate, seconds)
        file.seek(first)
        return file.read(count, dtype="float32", always_2d=True).T, rate


def _open(stream):
    import av

    # No protocols: a playlist shall not open other files, nor the network.
    return av.open(stream, metadata_errors="ignore", options={"protocol_whitelist": ""})


def _packet_seconds(stream):
    """Length of the audio, from its packets; nothing is decoded."""
    with _open(stream) as container:
        if not container.streams.audio:
            raise AudioError("no audio in it")
        audio = container.streams.audio[0]
        ticks = sum(packet.duration or 0 for packet in container.demux(audio))
        return float(ticks * audio.time_base)


def _by_pyav(stream, seconds):
    """Samples (n,) float32 and their rate in Hz, up to where the audio is damaged."""
    import av

    length = _packet_seconds(stream)
    stream.seek(0)
    with _open(stream) as container:
        rate = container.streams.audio[0].rate
        first, count = _middle(round(length * rate), rate, seconds)
        to_float = av.AudioResampler(format="fltp")
        blocks, position, skipped = [np.zeros(0, np.float32)], 0, 0
        with suppress(av.FFmpegError):
            for frame in container.decode(audio=0):
                position += frame.samples
                if position <= first:
                    skipped = position
                    continue
                for block in to_float.resample(frame):
                    blocks.append(block.to_ndarray().mean(axis=0))
                if first > 0 and position >= first + count:
                    break
    samples = np.concatenate(blocks)[first - skipped :]
    return samples[:count] if first > 0 else samples, rate


def _to_mono(samples, sr, name):
    samples = np.array(samples, np.float32)  # a copy: librosa may not take read-only arrays
    if not np.isfinite(samples).all():
        raise AudioError(f"{name}: NaN or infinite samples; export the audio again")
    loudest = np.abs(samples).max(initial=0)
    if loudest > LOUDEST:
        raise AudioError(f"{name}: samples up to {loudest:.0e}, not 1; export the audio again")
    mono = librosa.to_mono(samples)
    y = librosa.resample(mono, orig_sr=sr, target_sr=SAMPLE_RATE)
    if y.size and min(mono.std(), y.std()) < SILENCE:
        raise AudioError(f"{name}: silent; leave it out, or use another part of the track")
    return y
