"""Folders of music as people have them: layouts, groups, twins, and what is told of the rest."""

import os

import numpy as np
import pandas as pd
import pytest
import soundfile

from labhelpers.corpora.layout import Corpus, CorpusError
from labhelpers.series.extract import Made, Summary, extract_folder
from labhelpers.series.music import artist_of, grouped, read_music


def tone(pitch=220.0, seconds=0.6):
    t = np.arange(int(seconds * 22050)) / 22050
    return (0.4 * np.sin(2 * np.pi * pitch * t) * np.exp(-6 * (t % 0.5))).astype(np.float32)


def put(path, y, artist=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with soundfile.SoundFile(path, "w", 22050, 1) as file:
        if artist:
            file.artist = artist
        file.write(y)


def corpus_of(music, tmp_path, **how):
    summary = extract_folder(music, tmp_path / "out", jobs=1, progress=False, **how)
    return summary, Corpus(tmp_path / "out")


def sides(corpus):
    """Group -> the splits its clips are in."""
    parts = [corpus.labels("genre", split).assign(split=split) for split in ("train", "test")]
    return pd.concat(parts).groupby("group")["split"].agg(set)


# --- layouts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", ["{artist}", "{artist}/album", "all/{artist}"])
def test_artists_below_a_genre_stay_on_one_side(tmp_path, depth):
    for number, genre in enumerate(["Jazz", "Metal"]):
        for artist in "ABC":
            for i in range(2):
                folder = tmp_path / "music" / genre / depth.format(artist=artist)
                put(folder / f"0{i}.wav", tone(100 + 200 * number + 20 * ord(artist) + 5 * i))
    summary, corpus = corpus_of(tmp_path / "music", tmp_path)
    groups = sides(corpus)
    assert summary.done == 12 and not summary.notes
    assert set(groups.index) == {
        f"{genre}/{artist}" for genre in ("Jazz", "Metal") for artist in "ABC"
    }
    assert groups.map(len).max() == 1
    assert corpus.labels("genre", "test")["genre"].value_counts().to_dict() == {
        "Jazz": 2,
        "Metal": 2,
    }


def test_gtzans_names(tmp_path):
    for number, genre in enumerate(["blues", "rock"]):
        for i in range(3):
            path = tmp_path / "music" / genre / f"{genre}.0000{i}.au"
            put(path, tone(100 + 90 * number + 7 * i))
    (tmp_path / "music" / "rock" / "rock.00054.au").write_bytes(b"not audio")  # a known fault of it
    summary, corpus = corpus_of(tmp_path / "music", tmp_path)
    assert summary.done == 6 and "rock.00054.au" in summary.failed[0][1]
    ids = set(corpus.labels("genre")["id"]) | set(corpus.labels("genre", "test")["id"])
    assert ids == {f"{genre}-0000{i}" for genre in ("blues", "rock") for i in range(3)}


def fma(tmp_path, echonest=False):
    """The FMA's folders and tables: two tracks of each of three artists, one without genre."""
    rows = [",artist,set,set,track", ",id,split,subset,genre_top", "track_id,,,,"]
    for k, split in enumerate(["training", "validation", "test"]):
        for i in range(2):
            track = 1000 * k + i + 2
            put(tmp_path / "fma" / f"{k:03d}" / f"{track:06d}.wav", tone(150 + 37 * k + 11 * i))
            rows.append(f"{track},{k},{split},small,{'Rock' if i else 'Folk'}")
    put(tmp_path / "fma" / "003" / "003001.wav", tone(700))
    rows.append("3001,9,training,large,")
    folder = tmp_path / "fma_metadata"
    folder.mkdir()
    (folder / "tracks.csv").write_text("\n".join(rows))
    if echonest:
        head = [",echonest,echonest,echonest", ",audio_features,audio_features,audio_features"]
        lines = [
            *head,
            ",danceability,energy,valence",
            "track_id,,,",
            "2,0.1,0.2,0.3",
            "2002,.4,.5,.6",
        ]
        (folder / "echonest.csv").write_text("\n".join(lines))
    return tmp_path / "fma"


@pytest.mark.parametrize("named", [True, False])
def test_the_fmas_folders_with_its_table(tmp_path, named):
    music = fma(tmp_path)
    labels = tmp_path / "fma_metadata" / "tracks.csv" if named else None
    summary, corpus = corpus_of(music, tmp_path, labels=labels)
    train, test = corpus.labels("genre"), corpus.labels("genre", "test")
    assert train.set_index("id")["genre"].to_dict() == {
        "000002": "Folk",
        "000003": "Rock",
        "001002": "Folk",
        "001003": "Rock",
    }
    assert set(test["id"]) == {"002002", "002003"} and set(test["group"]) == {"artist 2"}
    assert any("1 audio files have no genre_top" in note for note in summary.notes)


def test_the_fmas_affect_comes_from_its_echonest_table(tmp_path):
    corpus = corpus_of(fma(tmp_path, echonest=True), tmp_path)[1]
    assert corpus.labels("affect").iloc[0, 3:].tolist() == [0.3, 0.2, 0.1]
    assert corpus.labels("affect", "test")["id"].tolist() == ["002002"]


def test_numbered_folders_without_a_table_are_refused(tmp_path):
    put(tmp_path / "fma" / "000" / "000002.wav", tone())
    with pytest.raises(CorpusError, match=r"folders are numbers \(000, …\), no genres.*tracks.csv"):
        read_music(tmp_path / "fma")
    (tmp_path / "tracks.csv").write_text(",artist\n,id\ntrack_id,\n2,1\n")
    with pytest.raises(CorpusError, match="tracks.csv: not the FMA's table"):
        read_music(tmp_path / "fma")


def test_a_flat_folder_with_a_table(tmp_path):
    for i in range(4):
        put(tmp_path / "music" / f"{i}.wav", tone(200 + 30 * i))
    with pytest.raises(CorpusError, match="no audio in subfolders.*--labels"):
        read_music(tmp_path / "music")
    (tmp_path / "table.csv").write_text("filename,label\n0.wav,A\n1.wav,A\n2.wav,B\n3.wav,B\n")
    corpus = corpus_of(tmp_path / "music", tmp_path, labels=tmp_path / "table.csv")[1]
    assert len(corpus.labels("genre")) == len(corpus.labels("genre", "test")) == 2


def test_a_table_of_names_finds_files_in_folders(tmp_path):
    put(tmp_path / "music" / "genres" / "x" / "one.wav", tone())
    (tmp_path / "t.csv").write_text("path,genre\none.wav,A\n")
    music = read_music(tmp_path / "music", tmp_path / "t.csv")
    assert music.clips["source"].tolist() == [str(tmp_path / "music/genres/x/one.wav")]


# --- what is passed over --------------------------------------------------------------------------


def test_hidden_files_are_none_and_others_are_counted(tmp_path):
    music = tmp_path / "music"
    for name in ("Rock/a.wav", "Rock/._b.wav", ".x/c.wav", "__MACOSX/Rock/d.wav", "e.wav"):
        put(music / name, tone())
    for name in ("Rock/cover.jpg", "Rock/list.txt", "Rock/notes"):
        (music / name).write_text("no music")
    put(music / "Rock" / "odd.wav", tone(300))
    (music / "Rock" / "odd.wav").rename(music / "Rock" / "odd.song")  # by content, not by name
    (music / "Rock" / "gone.wav").symlink_to("nowhere.wav")
    (music / "Rock" / "again").symlink_to(music, target_is_directory=True)
    found = read_music(music)
    names = ["a.wav", "gone.wav", "odd.song"]
    assert [os.path.basename(source) for source in found.clips["source"]] == names
    assert set(found.clips["genre"]) == {"Rock"}
    passed = " ".join(found.notes)
    assert "3 files are no audio" in passed and "1 jpg" in passed and "1 txt" in passed
    assert "1 audio files lie in no genre's folder" in passed and "e.wav" in passed


def test_a_corpus_inside_its_own_music(tmp_path):
    put(tmp_path / "Rock" / "a.wav", tone())
    for _ in range(2):
        summary, _ = corpus_of(tmp_path, tmp_path)
        assert not summary.notes


@pytest.mark.parametrize(
    "how, words", [({"jobs": 0}, "jobs is 0"), ({"seconds": -3}, "seconds is -3")]
)
def test_senseless_options_are_refused(tmp_path, how, words):
    with pytest.raises(CorpusError, match=words):
        extract_folder(tmp_path, tmp_path / "out", **how)


def test_clips_much_shorter_than_the_others_are_named(tmp_path):
    for i in range(5):
        put(tmp_path / "music" / "Rock" / f"{i}.wav", tone(200 + 20 * i, 3 if i else 0.5))
    summary, _ = corpus_of(tmp_path / "music", tmp_path)
    assert "1 clips are much shorter than the others (3 s)" in summary.notes[0]
    assert "0.wav (0.5 s)" in str(summary)


# --- groups and twins -----------------------------------------------------------------------------


def test_the_same_audio_under_several_names_stays_on_one_side(tmp_path):
    for i in range(3):
        put(tmp_path / "music" / "Pop" / f"p{i}.wav", tone(333))
        put(tmp_path / "music" / "Pop" / f"q{i}.wav", tone(500 + 50 * i))
        put(tmp_path / "music" / "Folk" / f"f{i}.wav", tone(200 + 20 * i))
    same = soundfile.read(tmp_path / "music" / "Pop" / "p0.wav", dtype="int16")[0]
    soundfile.write(tmp_path / "music" / "Folk" / "stolen.flac", same, 22050)
    summary, corpus = corpus_of(tmp_path / "music", tmp_path, test_fraction=0.4)
    (note,) = summary.notes
    assert (
        "4 clips are the same audio as another" in note
        and "stolen.flac" in note
        and "(Folk and Pop)" in note
    )
    assert sides(corpus).map(len).max() == 1


def test_twins_in_both_given_splits_leave_the_test_split(tmp_path):
    for name in ("a", "b", "c"):
        put(tmp_path / "music" / f"{name}.wav", tone(333 if name != "c" else 500))
    lines = ["path,genre,split", "a.wav,Pop,train", "b.wav,Pop,test", "c.wav,Pop,test"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    summary, corpus = corpus_of(tmp_path / "music", tmp_path, labels=tmp_path / "t.csv")
    assert corpus.labels("genre")["id"].tolist() == ["a", "b"]
    assert corpus.labels("genre", "test")["id"].tolist() == ["c"]
    assert any("1 of them stood in both splits" in note for note in summary.notes)


def test_an_artist_in_the_tags_makes_a_group(tmp_path):
    for i, artist in enumerate(["Ann", "Ann", "Bob", "Cid", None, "Various Artists"]):
        put(tmp_path / "music" / "Rock" / f"{i}.flac", tone(200 + 20 * i), artist)
    put(tmp_path / "music" / "Pop" / "x.flac", tone(600), "Ann")
    assert artist_of(str(tmp_path / "music" / "Rock" / "0.flac")) == "Ann"
    assert artist_of(str(tmp_path / "music" / "Rock" / "5.flac")) is None
    corpus = corpus_of(tmp_path / "music", tmp_path, test_fraction=0)[1]
    groups = corpus.labels("genre").set_index("id")["group"]
    assert groups[["0", "1", "x"]].tolist() == ["Ann"] * 3
    assert groups[["2", "4", "5"]].tolist() == ["2", "4", "5"]  # alone: a clip is its own group


def test_groups_join_at_any_remove_but_not_all_of_a_genre():
    clips = pd.DataFrame({"genre": ["Rock"] * 6, "group": None, "folder": list("aabbcd")})
    clips = clips.assign(artist=[None, "x", "x", None, None, None]).astype(object)
    no_twins = pd.Series([None] * 6, dtype=object)
    groups, notes = grouped(clips, no_twins)
    assert groups.isna().tolist() == [False] * 4 + [True] * 2 and groups[:4].nunique() == 1
    assert not notes
    groups, notes = grouped(clips.assign(artist="x"), no_twins)
    assert groups.isna().all() and "Rock: all clips are by fewer than 3" in notes[0]


# --- a corpus extracted again ---------------------------------------------------------------------


def test_a_renamed_genre_and_lost_labels_leave_nothing_behind(tmp_path):
    for i in range(4):
        put(tmp_path / "music" / "Foo" / f"{i}.wav", tone(200 + 20 * i))
    lines = ["path,genre,valence,energy,danceability,group"]
    lines += [f"Foo/{i}.wav,Foo,.1,.2,.3,g{i // 2}" for i in range(4)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    out = tmp_path / "out"
    corpus = corpus_of(tmp_path / "music", tmp_path, labels=tmp_path / "t.csv")[1]
    assert len(corpus.labels("affect")) == 2 and len(list(out.glob("*/groups.txt"))) == 4
    (out / "class_mapping.json").write_text('{"Foo": "Loud"}')  # as somebody may edit it
    summary, corpus = corpus_of(tmp_path / "music", tmp_path, labels=tmp_path / "t.csv")
    assert corpus.mapping == {"Foo": "Loud"} and summary.skipped == 4
    (tmp_path / "music" / "Foo").rename(tmp_path / "music" / "Blues")
    summary, corpus = corpus_of(tmp_path / "music", tmp_path)
    assert summary.done == 4 and corpus.mapping == {"Blues": "Blues"}
    assert set(corpus.labels("genre")["genre"]) == {"Blues"}
    assert not list(out.glob("*/groups.txt")) and not list(out.glob("multitask*/*.txt"))
    assert not list(out.glob("multitask*/*/*.npy"))


def test_a_summary_accounts_for_every_file():
    summary = Summary(3, 1, [("a.mp3", "a.mp3: empty file")], ["2 files are no audio"])
    text = "3 clips extracted, 1 were there already, 1 left out\n"
    assert str(summary) == text + "  left out: a.mp3: empty file\n  note: 2 files are no audio"
    assert Made(3, "x") == Made(3, "x")
