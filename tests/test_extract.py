"""Folders of music as people have them become a corpus, or a sentence that says why not."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile
from helpers import watched

from labhelpers import audio
from labhelpers.corpus import AFFECT, PROJECT, Corpus, load_array
from scripts import extract
from scripts.extract import ExtractError, make_corpus


def sound(number, seconds=0.6):
    """Noise with a tone, different for each number: (n,) float32."""
    t = np.arange(int(seconds * 22050)) / 22050
    noise = np.random.default_rng(number).standard_normal(len(t))
    return (0.3 * np.sin(2 * np.pi * (110 + 20 * number) * t) + 0.05 * noise).astype(np.float32)


def add(folder, *names, first=0):
    """Write a short WAV for each name, with sounds of their own."""
    for number, name in enumerate(names, first):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, sound(number), 22050)


@pytest.fixture
def music(tmp_path):
    """Two genres of five files."""
    add(tmp_path / "music", *(f"Blues/blues {i}.wav" for i in range(5)))
    add(tmp_path / "music", *(f"Ρεμπέτικο/ρεμπέτικο {i}.wav" for i in range(5)), first=10)
    return tmp_path / "music"


@pytest.fixture
def run(music, tmp_path, capsys):
    """Extract; returns the table of clips, the corpus, and what was printed."""

    def call(**options):
        clips = make_corpus(music, tmp_path / "out", jobs=1, **options)
        return clips, Corpus(tmp_path / "out"), capsys.readouterr().out

    return call


def splits(corpus, task="genre"):
    """Both label tables of a task, as one with a column split."""
    there = [split for split in ("train", "test") if corpus.has(task, split)]
    parts = [corpus.labels(task, split).assign(split=split) for split in there]
    return pd.concat(parts, ignore_index=True)


def test_folders_of_genres_become_a_corpus(run):
    clips, corpus, printed = run()
    table = splits(corpus)
    assert len(clips) == len(table) == 10 and not table["id"].duplicated().any()
    for genre in ("Blues", "Ρεμπέτικο"):
        assert sorted(table["split"][table["genre"] == genre]) == ["test"] + 4 * ["train"]
    for beat in (False, True):
        for path in corpus.labels("genre", "test", beat)["path"]:
            assert load_array(path).shape[0] == 140
    assert corpus.audio(table["id"][0]).is_file() and not corpus.has("affect")
    assert corpus.mapping == {"Blues": "Blues", "Ρεμπέτικο": "Ρεμπέτικο"} and not corpus.is_sample
    assert "10 clips" in printed and f"scripts.report --data {corpus.root}" in printed


def test_what_cannot_be_used_is_named_and_counted(music, run):
    (music / "Blues" / "cover.jpg").write_bytes(b"\xff\xd8\xff\xe0 no music")
    (music / "Blues" / "old.wma").write_bytes(b"\x30\x26\xb2\x75" + bytes(500))
    (music / "Blues" / "lost.mp3").symlink_to("nowhere.mp3")
    soundfile.write(music / "Blues" / "silence.wav", np.zeros(22050), 22050)
    soundfile.write(music / "Blues" / "huge.wav", 1e30 * sound(1), 22050, subtype="FLOAT")
    add(music, "stray.wav")
    clips, _, printed = run()
    assert len(clips) == 10 and "Files left out: 6" in printed
    told = re.findall(r"Left out: .*?(\w+)\.\w+: ", printed)
    assert sorted(told) == ["cover", "huge", "lost", "old", "silence", "stray"]


def test_files_of_one_folder_stay_in_one_split(music, run):
    shutil.rmtree(music)
    for number, artist in enumerate("ABCDE"):
        add(music, *(f"Jazz/{artist}/cd/0{i}.wav" for i in range(3)), first=3 * number)
    add(music, "Pop/one/1.wav", "Pop/one/2.wav", "Pop/two/1.wav", first=20)
    _, corpus, printed = run()
    table = splits(corpus)
    jazz, pop = (table[table["genre"] == genre] for genre in ("Jazz", "Pop"))
    assert jazz["group"].nunique() == 5 and (jazz.groupby("group")["split"].nunique() == 1).all()
    assert (jazz["split"] == "test").sum() == 3
    assert pop["group"].nunique() == 3 and "Pop: too few folders" in printed


def test_identical_recordings_are_named_and_stay_in_one_split(music, run):
    for i in range(6):
        shutil.copy(music / "Blues" / "blues 0.wav", music / "Ρεμπέτικο" / f"copy{i}.wav")
    _, corpus, printed = run()
    table = splits(corpus)
    twins = table[table.duplicated("group", keep=False)]
    assert len(twins) == 7 and twins["split"].nunique() == 1
    assert printed.count("copy3.wav = ") == 1 and "same recording" in printed


def test_names_that_differ_by_case_and_names_in_an_old_encoding(music, run):
    add(music, "Blues/Song.wav", "Blues/song.wav", "Ρεμπέτικο/song.wav", first=30)
    old = os.fsdecode(os.path.join(os.fsencode(music), b"Blues", b"m\xe9lodie\t1.wav"))
    with open(old, "wb") as stream:
        soundfile.write(stream, sound(40), 22050, format="WAV")
    clips, corpus, _ = run()
    table = splits(corpus)
    assert len(clips) == len(table) == table["id"].str.casefold().nunique() == 14
    assert table["id"].str.fullmatch(r"[\w-]+").all()


def test_a_second_call_extracts_only_what_is_new_or_changed(music, run, monkeypatch):
    _, corpus, _ = run()
    before = {path: path.read_bytes() for path in corpus.root.rglob("*.npy")}
    sources = watched(monkeypatch, extract, "extract", lambda _, source: source.name)
    (corpus.root / "class_mapping.json").write_text('{"Blues": "Old"}', encoding="utf-8")
    run()
    assert not sources
    assert before == {path: path.read_bytes() for path in corpus.root.rglob("*.npy")}
    assert Corpus(corpus.root).mapping["Blues"] == "Old"  # edits stay
    add(music, "Blues/new.wav", "Blues/blues 1.wav", first=50)
    (music / "Blues" / "blues 2.wav").unlink()
    clips, corpus, _ = run()
    assert sorted(sources) == ["blues 1.wav", "new.wav"]
    assert len(clips) == len(splits(corpus)) == len(list(corpus.root.rglob("*.npy"))) / 2 == 10
    clips, corpus, _ = run(seconds=0.4)
    assert len(sources) == 12
    clip = clips.iloc[0]["id"]  # its sound is the middle that its array was made of
    array = load_array(corpus.folder("genre") / clips.iloc[0]["split"] / f"{clip}.fused.full.npy")
    np.testing.assert_array_equal(audio.extract(corpus.sound(clip), beats=False)[0], array)


def test_nothing_that_was_not_made_here_is_touched(music, tmp_path):
    labels = tmp_path / "out" / "fma_genre_spectrograms" / "train_labels.txt"
    labels.parent.mkdir(parents=True)
    labels.write_text("Id\tGenre\n1\tRock\n")
    with pytest.raises(ExtractError, match="not made here"):
        make_corpus(music, tmp_path / "out", jobs=1)
    assert labels.read_text() == "Id\tGenre\n1\tRock\n"


# --- tables ---------------------------------------------------------------------------------------


def write_table(tmp_path, text):
    (tmp_path / "table.csv").write_text(text, encoding="utf-8-sig")
    return tmp_path / "table.csv"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_gives_genre_affect_group_and_split(run, tmp_path, separator):
    text = (
        "Path,genre,valence,energy,danceability,group,split\n"
        "Blues/blues 0.wav,NA,0.1,0.2,0.3,a,train\n"
        "Blues/blues 1.wav,NA,,,,a,test\n"
        "Blues/blues 2.wav,,0.4,0.5,1,b,test\n"
        "Blues/blues 3.wav,Ska,,,,,test\n"
    )
    clips, corpus, printed = run(table=write_table(tmp_path, text.replace(",", separator)))
    genre, affect = splits(corpus), splits(corpus, "affect")
    assert list(zip(genre["genre"], genre["split"])) == 2 * [("NA", "train")] + [("Ska", "test")]
    assert "both splits" in printed  # then a group is for training
    assert genre["group"][0] == genre["group"][1] != genre["group"][2]
    np.testing.assert_allclose(affect[list(AFFECT)], [[0.1, 0.2, 0.3], [0.4, 0.5, 1]])
    assert affect["split"].tolist() == ["train", "test"] and "2 of them with affect" in printed
    assert len(clips) == 4


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name,style\na.wav,Rock\n", "a column path"),
        ("path,genre\n", "needs rows"),
        ("path,genre\n,Rock\n", "row 1 .*empty"),
        ("path,genre\na.wav,Rock\na.wav,Pop\n", "row 2 .*listed twice"),
        ("path,genre,valence,energy,danceability\na.wav,Rock,0.5,1.2,0.3\n", "from 0 to 1"),
        ("path,valence,energy,danceability\na.wav,0.5,,0.3\n", "from 0 to 1"),
        ("path,genre,split\na.wav,Rock,train\nb.wav,Rock,\n", "row 2 .*split"),
        ("path,genre\na.wav,Rock\n", "none of 1 files"),
    ],
)
def test_a_wrong_table_gets_a_sentence(run, tmp_path, text, reason):
    with pytest.raises(ExtractError, match=reason):
        run(table=write_table(tmp_path, text))


def test_the_readme_makes_a_table_of_the_fma(tmp_path, monkeypatch, capsys):
    music = tmp_path / "fma_small"
    add(music, *(f"000/{number:06}.wav" for number in (2, 5, 10, 140)))
    for path in music.rglob("*.wav"):
        path.rename(path.with_suffix(".mp3"))  # what is in a file counts
    (tmp_path / "fma_metadata").mkdir()
    (tmp_path / "fma_metadata" / "tracks.csv").write_text(
        ",artist,set,set,track\n,id,split,subset,genre_top\ntrack_id,,,,\n"
        "2,1,training,small,Hip-Hop\n5,1,training,small,Hip-Hop\n"
        "10,6,test,small,Pop\n20,4,training,large,\n140,9,validation,small,\n150,9,test,small,Rock\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExtractError, match="--table"):
        make_corpus(music, tmp_path / "out", jobs=1)
    readme = (PROJECT / "data" / "README.md").read_text(encoding="utf-8")
    exec(re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1], {})
    clips = make_corpus("fma_small", tmp_path / "out", table="fma.csv", jobs=1)
    columns = clips[["genre", "split", "group"]].to_numpy().tolist()
    assert columns == 2 * [["Hip-Hop", "train", "1"]] + [["Pop", "test", "6"]]
    assert len(splits(Corpus(tmp_path / "out"))) == 3


# --- the command ----------------------------------------------------------------------------------


def test_the_command_in_two_processes_and_its_errors(music, tmp_path):
    def command(*arguments):
        line = [sys.executable, "-m", "scripts.extract", *map(str, arguments)]
        return subprocess.run(line, cwd=PROJECT, capture_output=True, text=True)

    done = command(music, tmp_path / "my music", "--jobs", 2, "--seconds", 0.5)
    assert done.returncode == 0, done.stderr
    assert f"--data '{tmp_path / 'my music'}'" in done.stdout
    assert len(splits(Corpus(tmp_path / "my music"))) == 10
    assert command(music, tmp_path / "x", "--jobs", 0).returncode != 0
    wrong = command(tmp_path / "nowhere", tmp_path / "x")
    assert wrong.returncode == 1 and "no such folder" in wrong.stderr
    assert "Traceback" not in wrong.stderr
