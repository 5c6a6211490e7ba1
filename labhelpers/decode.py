"""Samples out of any audio file, by what is in it and not by its name.

libsndfile (in soundfile) reads most kinds: wav, flac, mp3, ogg, opus, au, aiff, caf and more. The
rest (m4a, wma, films, …) needs the program ffmpeg.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import soundfile

FFMPEG_RATE = 22050  # Hz: what ffmpeg is asked for
# Of MPEG audio, layer III: kbit/s by index, for MPEG 1 and for 2 and 2.5; bytes before the tag, by
# whether it is MPEG 1 and mono; Hz by version and index.
BITRATES = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
SIDE = {(True, True): 17, (True, False): 32, (False, True): 9, (False, False): 17}
RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


class AudioError(ValueError):
    """A clip cannot be used; the message names it, what is wrong and what to do. Notebook: 01."""


def decode(path: Path, seconds: float | None = None, longest: float = np.inf):
    """Samples ((channels, n) or (n,) float32) and their rate in Hz. Notebook: 01.

    seconds : of a longer file, the middle that is read; None = all of it
    longest : seconds beyond which nothing is read
    The length is that of the audio, whatever the file's header says. Raises AudioError.
    """
    if not path.is_file():
        raise AudioError(f"{path}: no such file; check the name")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: empty file; copy it again")
    try:
        return _by_soundfile(path, seconds, longest)
    except AudioError:
        raise
    except Exception as error:  # a damaged file can raise anything
        reason = str(error) or type(error).__name__
    if shutil.which("ffmpeg") is None:
        advice = "convert it to wav or flac, or install ffmpeg, which reads more kinds"
        raise AudioError(f"{path}: not readable as audio ({reason}); {advice}")
    return _by_ffmpeg(path, seconds, longest), FFMPEG_RATE


def is_audio(path: Path) -> bool:
    """Whether libsndfile knows the file for audio, from its first bytes.

    Notebook: none (labhelpers extract).
    """
    with suppress(Exception), soundfile.SoundFile(path) as file:
        return file.format != "RAW"
    return False


def _middle(path: Path, frames: int, rate: int, seconds: float | None, longest: float):
    """First frame and number of frames to read of a file."""
    whole = frames / rate
    if min(seconds or whole, whole) > longest:
        raise AudioError(
            f"{path}: {whole / 60:.0f} minutes; at most {longest / 60:.0f} can be used whole: "
            "take its middle, or cut it"
        )
    if seconds is None or whole <= seconds:
        return 0, frames
    return int((whole - seconds) / 2 * rate), int(seconds * rate)


def _by_soundfile(path: Path, seconds: float | None, longest: float):
    with soundfile.SoundFile(_with_true_length(path)) as file:
        first, count = _middle(path, file.frames, file.samplerate, seconds, longest)
        file.seek(first)
        samples = file.read(count, dtype="float32")
        if seconds and len(samples) < count:  # the file ends before its header says
            file.seek(0)
            there = sum(len(block) for block in _blocks(file))
            first, count = _middle(path, there, file.samplerate, seconds, longest)
            file.seek(first)
            samples = file.read(count, dtype="float32")
        if len(samples) == 0:
            raise AudioError(f"{path}: no audio in it; copy it again")
        return samples.T, file.samplerate


def _blocks(file: soundfile.SoundFile):
    while len(block := file.read(1 << 16)):
        yield block


def _by_ffmpeg(path: Path, seconds: float | None, longest: float) -> np.ndarray:
    """Samples (n,) at FFMPEG_RATE, mixed to mono."""
    command = ["ffmpeg", "-nostdin", "-v", "error", "-protocol_whitelist", "file"]
    command += ["-i", f"file:{path}", "-map", "a:0", "-f", "f32le", "-ac", "1"]
    with tempfile.TemporaryFile() as stream:  # two hours are 600 MB: not in memory
        pipe = subprocess.Popen(
            [*command, "-ar", str(FFMPEG_RATE), "pipe:1"], stdout=stream, stderr=subprocess.PIPE
        )
        said = pipe.communicate()[1].decode(errors="replace").strip().splitlines()
        frames = stream.seek(0, io.SEEK_END) // 4
        if frames == 0:
            reason = [*said, "no audio in it"][0].rpartition("] ")[2]
            reason = reason.removeprefix(f"file:{path}: ")
            raise AudioError(
                f"{path}: not readable as audio, by ffmpeg neither ({reason}); "
                "convert it to wav or flac"
            )
        first, count = _middle(path, frames, FFMPEG_RATE, seconds, longest)
        stream.seek(4 * first)
        return np.fromfile(stream, "<f4", count).astype(np.float32)


# --- the length of an MP3 -------------------------------------------------------------------------


def _with_true_length(path: Path):
    """The file itself, or an MP3's bytes with the number of frames that are really there.

    An MP3 tells its length in a tag of its first frame, and libsndfile believes it; without a tag
    it guesses from the first frame's bitrate.
    """
    with open(path, "rb") as stream:
        begin = stream.read(3)
    if begin != b"ID3" and (begin[0] != 0xFF or begin[1] < 0xE0):
        return path
    data = bytearray(path.read_bytes())
    start = _after_id3(data)
    # A frame of AAC, which libsndfile takes for one of MP3.
    if data[start : start + 1] == b"\xff" and data[start + 1] & 0xF6 == 0xF0:
        raise ValueError("it is AAC, whatever its name")
    frames = _mp3_frames(data, start)
    if not frames:
        return path
    first, size = frames[0]
    tag = max(data.find(name, first, first + size) for name in (b"Xing", b"Info"))
    if tag < 0:
        data[first:first] = _tagged_frame(data[first : first + 4], len(frames))
        return io.BytesIO(data)
    flags, told = data[tag + 7], int.from_bytes(data[tag + 8 : tag + 12], "big")
    if not flags & 1 or told == len(frames) - 1:
        return path
    data[tag + 8 : tag + 12] = (len(frames) - 1).to_bytes(4, "big")
    if flags & 2:
        data[tag + 12 : tag + 16] = (len(data) - first).to_bytes(4, "big")
    return io.BytesIO(data)


def _after_id3(data: bytearray) -> int:
    if data[:3] != b"ID3":
        return 0
    return 10 + sum((data[6 + i] & 127) << (21 - 7 * i) for i in range(4))


def _mp3_frames(data: bytearray, start: int) -> list[tuple[int, int]]:
    """(where it begins, bytes) of each frame of layer III; none if most is something else."""
    at, frames = start, []
    while 0 <= at <= len(data) - 4:
        size = _mp3_size(data[at : at + 4])
        end = at + size
        # What looks like a frame is one if another follows it, or the end.
        if size and (end == len(data) or _mp3_size(data[end : end + 4])):
            frames.append((at, size))
            at = end
        else:
            at = data.find(b"\xff", at + 1)
    covered = sum(size for _, size in frames)
    if covered <= (len(data) - start) / 2:
        return []
    return frames


def _mp3_size(header: bytes) -> int:
    """Bytes of the frame that a header of four bytes begins; 0 where it is none."""
    if len(header) < 4 or header[0] != 0xFF or header[1] < 0xE0:
        return 0
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3
    bitrate, rate, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or layer != 1 or bitrate in (0, 15) or rate == 3:
        return 0
    if version == 3:
        table, samples = BITRATES[3], 1152
    else:
        table, samples = BITRATES[2], 576
    return samples // 8 * 1000 * table[bitrate] // RATES[version][rate] + padding


def _tagged_frame(header: bytearray, frames: int) -> bytes:
    """A silent frame like the one with that header, whose tag tells the number of frames."""
    tag = b"Xing" + (1).to_bytes(4, "big") + frames.to_bytes(4, "big")
    side = SIDE[header[1] >> 3 & 3 == 3, header[3] >> 6 == 3]
    header = bytearray(header)
    header[1] |= 1  # no checksum
    header[2] = header[2] & 0x0D | 0x90  # long enough for the tag, not padded
    size = _mp3_size(header)
    return (bytes(header) + bytes(side) + tag).ljust(size, b"\0")
