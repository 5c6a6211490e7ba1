"""The extractor against plain librosa calls, and two processes against one, in the same run.

    python -m tools.bench_extract FILE …

Medians of ratios within a round: another process that takes the processor slows both sides.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import librosa
import numpy as np
from threadpoolctl import threadpool_limits

from labhelpers.audio import extract, load_audio
from labhelpers.corpora.write import in_processes


def extraction(files: list[Path], rounds: int = 3, say=print) -> dict[str, float]:
    """`extract` against the same by plain librosa calls, and two processes against one.

    files : audio; the arrays of both ways must be equal to the last bit
    Returns seconds a file `plain` and `ours`, and the ratios `plain/ours` and `two/one` (speed).
    """
    clips = [load_audio(path, 30) for path in files]
    extract(clips[0]), plain_extract(clips[0])  # what numba compiles is compiled
    times = []
    with threadpool_limits(1):
        for y in rounds * clips:
            theirs, ours = plain_extract(y), extract(y)
            assert all(map(np.array_equal, theirs, ours)), "the arrays differ"
            times.append((_seconds(plain_extract, y), _seconds(extract, y)))
    times = np.array(times)
    plain, ours = np.median(times, axis=0)
    speeds = []
    _in_processes(2, clips)  # the processes are there from now on
    for _ in range(rounds):
        one, two = (_seconds(_in_processes, jobs, 4 * clips) for jobs in (1, 2))
        speeds.append(one / two)
    result = {
        "plain": plain,
        "ours": ours,
        "plain/ours": float(np.median(times[:, 0] / times[:, 1])),
        "two/one": float(np.median(speeds)),
    }
    say(f"{len(files)} files, {rounds} rounds on one thread; the arrays are equal to the last bit")
    say(f"plain librosa {plain:.2f} s, ours {ours:.2f} s a clip: {result['plain/ours']:.2f} x")
    say(f"two processes {result['two/one']:.2f} x one")
    return result


def plain_extract(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lab's arrays, by librosa's own functions."""
    power = librosa.feature.melspectrogram(y=y, sr=22050, n_fft=2048, hop_length=512, n_mels=128)
    chroma = librosa.feature.chroma_cqt(y=y, sr=22050, hop_length=512)
    struck = librosa.effects.percussive(y)
    beats = librosa.beat.beat_track(y=struck, sr=22050, hop_length=512)[1]
    edges = librosa.util.fix_frames(beats, x_min=0, x_max=power.shape[1])
    sync = partial(librosa.util.sync, idx=edges, aggregate=np.median, pad=False)
    pairs = (power, chroma), (sync(power), sync(chroma))
    return tuple(
        np.vstack([librosa.power_to_db(mel, ref=np.max), pitches]).astype(np.float32)
        for mel, pitches in pairs
    )


def _in_processes(jobs: int, clips: list[np.ndarray]) -> None:
    for _ in in_processes(_extracted, [(y,) for y in clips], jobs, progress=False):
        pass


def _extracted(y: np.ndarray) -> None:
    extract(y)


def _seconds(call, *args) -> float:
    start = time.perf_counter()
    call(*args)
    return time.perf_counter() - start


if __name__ == "__main__":
    extraction([Path(name) for name in sys.argv[1:]])
