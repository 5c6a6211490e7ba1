"""The extractor against plain librosa, and files as people have them."""

import os
from functools import partial

import librosa
import numpy as np
import pytest
import soundfile
from helpers import watched

from labhelpers.audio import AudioError, beat_sync, extract, load_audio, percussive, resynthesise

av = pytest.importorskip("av")


def tone(seconds=1.5, rate=22050, pitch=220.0, seed=0):
    """A chord with a stroke every half second and a little noise: (n,) float32."""
    t = np.arange(int(seconds * rate)) / rate
    chord = sum(np.sin(2 * np.pi * pitch * ratio * t) for ratio in (1, 1.25, 1.5))
    noise = np.random.default_rng(seed).standard_normal(len(t))
    strokes = 0.3 * noise * np.exp(-(t % 0.5) / 0.02)
    return (0.1 * chord + strokes + 0.001 * noise).astype(np.float32)


def sweep(seconds, rate=44100):
    """A tone that rises by 40 Hz per second, so that a middle differs from a beginning."""
    t = np.arange(int(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * (200 + 20 * t) * t)).astype(np.float32)


def check_sweep(path, seconds, part):
    """A file of a sweep is as long as it should be, and of a part of it the middle is read."""
    assert len(load_audio(path)) / 22050 == pytest.approx(seconds, abs=0.1)
    middle = load_audio(path, seconds=part)
    assert len(middle) == part * 22050
    pitch = np.abs(np.fft.rfft(middle)).argmax() / part
    assert pitch == pytest.approx(200 + 20 * seconds, abs=25 * part)


# --- the arrays -----------------------------------------------------------------------------------


def plain_extract(y):
    """The lab's arrays by librosa's own functions."""
    power = librosa.feature.melspectrogram(y=y, sr=22050, n_fft=2048, hop_length=512, n_mels=128)
    chroma = librosa.feature.chroma_cqt(y=y, sr=22050, hop_length=512)
    beats = librosa.beat.beat_track(y=librosa.effects.percussive(y), sr=22050, hop_length=512)[1]
    edges = librosa.util.fix_frames(beats, x_min=0, x_max=power.shape[1])
    sync = partial(librosa.util.sync, idx=edges, aggregate=np.median, pad=False)
    decibels = partial(librosa.power_to_db, ref=np.max)
    arrays = (decibels(power), chroma), (decibels(sync(power)), sync(chroma))
    return [np.vstack(rows).astype(np.float32) for rows in arrays]


@pytest.mark.parametrize(("seconds", "pitch"), [(7, 220), (3, 225), (1.3, 110), (0.1, 220)])
def test_arrays_equal_those_of_plain_librosa_to_the_last_bit(seconds, pitch):
    y = tone(seconds, pitch=pitch)
    np.testing.assert_array_equal(percussive(y), librosa.effects.percussive(y))
    for ours, theirs in zip(extract(y), plain_extract(y)):
        assert ours.dtype == np.float32 and len(ours) == 140
        np.testing.assert_array_equal(ours, theirs)


def test_beat_sync_takes_medians_and_keeps_the_ends():
    S = np.array([[1.0, 3, 2, 10, 20, 30, 7]])
    np.testing.assert_array_equal(beat_sync(S, np.array([3, 6])), [[2, 20, 7]])
    np.testing.assert_array_equal(beat_sync(S, np.array([0, 3])), [[2, 15]])
    no_beats = np.array([], dtype=int)
    np.testing.assert_array_equal(beat_sync(S, no_beats), [[7]])


def test_resynthesis_sounds_like_the_spectrogram():
    mel = extract(tone(2), beats=False)[0][:128]
    y = resynthesise(mel)
    again = extract(y, beats=False)[0][:128]
    loud = mel[:, : again.shape[1]] > -40
    assert np.abs(again - mel[:, : again.shape[1]])[loud].mean() < 3  # dB
    np.testing.assert_array_equal(y, resynthesise(mel, seed=0))
    assert np.abs(y - resynthesise(mel, seed=1)).max() > 0.01


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "channels", "subtype"),
    [(22050, 1, "PCM_U8"), (96000, 1, "PCM_24"), (8000, 2, "PCM_16"), (44100, 6, "FLOAT")],
)
def test_any_rate_depth_and_number_of_channels(tmp_path, rate, channels, subtype):
    path = tmp_path / "clip.wav"
    soundfile.write(path, np.stack([tone(rate=rate)] * channels, axis=1), rate, subtype=subtype)
    full, _ = extract(path, beats=False)
    expected, _ = extract(tone(), beats=False)
    assert abs(full.shape[1] - expected.shape[1]) <= 1
    assert full[128:, 5:60].mean(axis=1).argmax() == expected[128:, 5:60].mean(axis=1).argmax()


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "aiff", "au", "caf", "w64", "rf64", "mp3"])
def test_the_content_counts_not_the_name_and_of_long_files_the_middle(tmp_path, kind):
    path = tmp_path / "clip.dat"
    soundfile.write(path, sweep(4), 44100, format=kind.upper())
    check_sweep(path, seconds=4, part=1)


@pytest.mark.parametrize(
    ("codec", "kind"),
    [("aac", "mp4"), ("aac", "adts"), ("aac", "matroska"), ("ac3", "avi"), ("mp2", "mp2")],
)
def test_what_libsndfile_does_not_read(tmp_path, codec, kind):
    path = tmp_path / "clip.mp3"  # whatever it is called
    stereo = np.stack([sweep(6), sweep(6) / 2])
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=44100, layout="stereo")
        frame = av.AudioFrame.from_ndarray(stereo, format="fltp", layout="stereo")
        frame.sample_rate = 44100
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    check_sweep(path, seconds=6, part=2)
    mean = 0.3 / np.sqrt(2)  # of both channels
    assert load_audio(path).std() == pytest.approx(mean, abs=0.01)


def test_both_channels_count_and_samples_stay_as_they_are(tmp_path):
    both = np.stack([tone(pitch=220), tone(pitch=311)])
    soundfile.write(tmp_path / "stereo.wav", both.T, 22050, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "stereo.wav"), both.mean(axis=0), atol=1e-6)
    both.flags.writeable = False
    mean = extract(both.mean(axis=0), beats=False)[0]
    np.testing.assert_allclose(extract(both, beats=False)[0], mean, atol=1e-3)


@pytest.mark.parametrize("change", [lambda n: 10 * n, lambda n: n // 4, lambda n: 0, lambda n: n])
def test_an_mp3_is_as_long_as_its_audio_whatever_its_header_states(tmp_path, change):
    path = tmp_path / "x.mp3"
    soundfile.write(path, sweep(8), 44100, format="MP3")
    data = bytearray(path.read_bytes())
    at = max(data.find(b"Xing"), data.find(b"Info"))
    frames = int.from_bytes(data[at + 8 : at + 12], "big")
    data[at + 8 : at + 12] = change(frames).to_bytes(4, "big")
    path.write_bytes(data)
    check_sweep(path, seconds=8, part=2)


@pytest.mark.parametrize("kind", ["MP3", "FLAC", "WAV"])
def test_of_half_a_file_what_is_there(tmp_path, kind):
    path = tmp_path / "half"
    soundfile.write(path, sweep(8), 44100, format=kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    seconds = len(load_audio(path)) / 22050
    assert 3 < seconds < 5
    check_sweep(path, seconds, part=1)


def test_streams_whose_header_leaves_the_length_open(tmp_path):
    soundfile.write(tmp_path / "open.flac", sweep(6), 44100)
    data = bytearray((tmp_path / "open.flac").read_bytes())
    data[21] &= 0xF0  # STREAMINFO: the number of samples is unknown
    data[22:26] = bytes(4)
    (tmp_path / "open.flac").write_bytes(data)
    soundfile.write(tmp_path / "pipe.wav", sweep(6), 44100, subtype="PCM_16")
    data = bytearray((tmp_path / "pipe.wav").read_bytes())
    at = data.index(b"data")
    data[4:8] = data[at + 4 : at + 8] = bytes(4)  # no size, as a pipe leaves it
    (tmp_path / "pipe.wav").write_bytes(data)
    for name in ("open.flac", "pipe.wav"):
        check_sweep(tmp_path / name, seconds=6, part=2)


def test_of_hours_only_what_is_asked_for_is_read(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "long.wav", np.tile(tone(60, 8000), 60), 8000, subtype="PCM_U8")
    sizes = watched(monkeypatch, soundfile.SoundFile, "read", lambda block, *_: len(block))
    assert len(load_audio(tmp_path / "long.wav", seconds=30)) == 30 * 22050
    assert sum(sizes) <= 31 * 8000


def test_a_name_in_any_encoding_can_be_printed(tmp_path):
    path = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"m\xe9lodie.wav"))  # Latin-1
    with pytest.raises(AudioError, match="no such file") as caught:
        load_audio(path)
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        (b"", "empty file"),
        (b"RIFF and then nothing of the kind" * 9, "not readable as audio"),
        (b"#EXTM3U\n#EXTINF:2\nhttp://127.0.0.1:9/a.wav\n", "not readable as audio"),
        (np.zeros(0), "not readable as audio|no audio"),
        (np.zeros(22050), "silent"),
        (np.full(22050, 0.5), "silent"),  # a constant current
        (1e-6 * tone(1), "silent"),
        (tone(0.05), "less than one frame"),
        (np.where(np.arange(22050) == 9000, np.nan, tone(1)), "NaN"),
        (tone(1) * 1e30, "samples up to"),
        (np.stack([tone(), -tone()], axis=1), "silent"),
    ],
)
def test_bad_audio_gets_a_sentence_with_the_file_and_the_fix(tmp_path, content, reason):
    path = tmp_path / "bad.wav"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        soundfile.write(path, content, 22050, subtype="DOUBLE")
    with pytest.raises(AudioError, match=reason) as caught:
        extract(path)
    assert str(path) in str(caught.value) and ";" in str(caught.value)
