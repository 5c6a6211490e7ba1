"""Samples out of audio files of many kinds, with headers that lie, by what is in them."""

import shutil
import subprocess
import wave

import numpy as np
import pytest
import soundfile

from labhelpers.audio import load_audio
from labhelpers.decode import AudioError, decode, is_audio

needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None, reason="ffmpeg is not installed: only libsndfile reads here"
)


def sound(seconds, rate=44100):
    """A tone that rises, so that a middle can be told from a beginning: (n,) float32."""
    t = np.arange(int(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * (200 + 20 * t) * t)).astype(np.float32)


def pitch(y, rate=22050):
    """Hz of the strongest frequency."""
    return np.abs(np.fft.rfft(y)).argmax() * rate / len(y)


@pytest.fixture
def mp3(tmp_path):
    """12 s of MP3, whose first frame tells its length."""
    soundfile.write(tmp_path / "whole.mp3", sound(12), 44100, format="MP3")
    return tmp_path / "whole.mp3"


def told(mp3, name, change):
    """A copy whose tag tells change(number of frames)."""
    data = bytearray(mp3.read_bytes())
    at = max(data.find(b"Xing"), data.find(b"Info"))
    frames = int.from_bytes(data[at + 8 : at + 12], "big")
    data[at + 8 : at + 12] = change(frames).to_bytes(4, "big")
    mp3.with_name(name).write_bytes(data)
    return mp3.with_name(name)


@pytest.mark.parametrize("change", [lambda n: 10 * n, lambda n: n // 4, lambda n: 0])
def test_an_mp3_whose_header_lies_is_read_as_if_it_did_not(mp3, change):
    wrong = told(mp3, "wrong.mp3", change)
    np.testing.assert_array_equal(load_audio(wrong), load_audio(mp3))
    np.testing.assert_array_equal(load_audio(wrong, 5), load_audio(mp3, 5))
    assert len(load_audio(wrong, 5)) == 5 * 22050


def test_of_a_cut_mp3_the_middle_of_what_is_there(mp3):
    data = mp3.read_bytes()
    mp3.write_bytes(data[: len(data) // 2])
    whole = load_audio(mp3)
    assert len(whole) / 22050 == pytest.approx(6, abs=0.2)
    assert pitch(load_audio(mp3, 2)) == pytest.approx(pitch(whole[2 * 22050 : 4 * 22050]), abs=30)


@needs_ffmpeg
@pytest.mark.parametrize("options", [["-q:a", "4"], ["-b:a", "64k"], ["-ar", "22050", "-q:a", "8"]])
def test_an_mp3_without_a_tag_is_read_to_its_end(mp3, options):
    bare = mp3.with_name("bare.mp3")
    convert(mp3, bare, *options, "-write_xing", "0")
    assert len(load_audio(bare)) / 22050 == pytest.approx(12, abs=0.1)


def convert(source, target, *options):
    command = ["ffmpeg", "-y", "-v", "error", "-i", source, *options, target]
    subprocess.run(command, check=True)


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "aiff", "au", "caf", "w64", "rf64", "mp3"])
def test_what_libsndfile_reads(tmp_path, kind):
    path = tmp_path / "clip.dat"  # whatever it is called
    soundfile.write(path, sound(2), 44100, format=kind.upper())
    assert is_audio(path)
    y = load_audio(path)
    assert len(y) == pytest.approx(2 * 22050, abs=50)
    assert pitch(load_audio(path, 0.5)) == pytest.approx(pitch(sound(2)[33075:55125], 44100), abs=9)


@needs_ffmpeg
@pytest.mark.parametrize("name", ["x.m4a", "x.wma", "x.webm", "x.mka", "x.ac3", "x.mp2", "x.opus"])
def test_what_ffmpeg_reads(mp3, name):
    path = mp3.with_name(name)
    convert(mp3, path)
    assert len(load_audio(path)) / 22050 == pytest.approx(12, abs=0.1)
    assert pitch(load_audio(path, 1)) == pytest.approx(440, abs=45)  # the middle, of 200 to 680


@needs_ffmpeg
def test_aac_that_is_called_mp3(mp3):
    convert(mp3, mp3.with_name("x.aac"))
    mp3.with_name("x.aac").replace(mp3)
    assert len(load_audio(mp3)) / 22050 == pytest.approx(12, abs=0.2)


def test_without_ffmpeg_the_advice_is_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    (tmp_path / "x.wma").write_bytes(b"\x30\x26\xb2\x75" + bytes(500))
    with pytest.raises(AudioError, match=r"x.wma: not readable as audio \(.*install ffmpeg"):
        load_audio(tmp_path / "x.wma")
    assert not is_audio(tmp_path / "x.wma")


@needs_ffmpeg
def test_what_nothing_reads_is_said_in_one_sentence(tmp_path):
    (tmp_path / "notes.mp3").write_text("no music\n" * 99)
    with pytest.raises(AudioError, match="notes.mp3: not readable as audio, by ffmpeg neither"):
        load_audio(tmp_path / "notes.mp3")


@needs_ffmpeg
def test_a_playlist_opens_nothing(tmp_path):
    soundfile.write(tmp_path / "secret.wav", sound(2), 44100)
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:2\nhttp://127.0.0.1:9/secret.wav\n")
    with pytest.raises(AudioError, match="list.m3u8"):
        load_audio(tmp_path / "list.m3u8")


def test_a_wav_that_was_cut_off(tmp_path):
    path = tmp_path / "cut.wav"
    soundfile.write(path, sound(8), 44100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert len(load_audio(path)) / 22050 == pytest.approx(4, abs=0.01)
    y = load_audio(path, 1)
    assert pitch(y) == pytest.approx(pitch(sound(8)[66150:110250], 44100), abs=9)


def test_of_hours_only_what_is_asked_for_is_read(tmp_path):
    path = tmp_path / "long.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(2 * 8000 * 60 * 60))
    samples, rate = decode(path, 30)
    assert len(samples) == 30 * rate
    with pytest.raises(AudioError, match="60 minutes; at most 39"):
        load_audio(path)
