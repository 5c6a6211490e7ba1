"""Label files, arrays, which corpus is taken: what is right is read, what is wrong is named."""

import gzip
import io
import os
import shutil
import unicodedata
from functools import partial

import numpy as np
import pytest
from helpers import make_corpus, noise, save, write_lines

from labhelpers.corpus import Corpus, CorpusError, CorpusWarning, find_corpus, load_array


def genre_file(corpus):
    return corpus.root / "fma_genre_spectrograms" / "train_labels.txt"


def affect_file(corpus):
    return corpus.root / "multitask_dataset" / "train_labels.txt"


# --- labels ---------------------------------------------------------------------------------------


def test_labels_come_in_the_files_order_whatever_the_names_say(corpus):
    for beat in (False, True):
        for split in ("train", "test"):
            table = corpus.labels("genre", split, beat)
            lines = (corpus.folder("genre", beat) / f"{split}_labels.txt").read_text().splitlines()
            names, genres = zip(*(line.split("\t") for line in lines[1:]))
            assert table["id"].tolist() == [name.split(".")[0] for name in names]
            assert table["path"].map(lambda path: path.name.split(".")[0]).equals(table["id"])
            assert table["genre"].tolist() == list(genres)
    lines = affect_file(corpus).read_text().splitlines()
    values = [[float(number) for number in line.split(",")[1:]] for line in lines[1:]]
    table = corpus.labels("affect")[["valence", "energy", "danceability"]]
    np.testing.assert_array_equal(table, values)


def test_withheld_test_clips_come_in_natural_order(corpus):
    path = corpus.root / "multitask_dataset" / "test" / "32.fused.full.npy"
    path.rename(path.with_name("1000.fused.full.npy"))
    expected = ["27", "28", "29", "30", "31", "1000"]
    assert corpus.labels("affect", "test")["id"].tolist() == expected


@pytest.mark.parametrize("encoding, newline", [("utf-8-sig", "\n"), ("utf-8", "\r\n")])
def test_label_files_as_people_save_them(corpus, encoding, newline):
    expected = corpus.labels("genre"), corpus.labels("affect")
    for file in (genre_file(corpus), affect_file(corpus)):
        head, *lines = file.read_text().splitlines()
        head = head.replace("Id,", "Id.fused.full.npy.gz,")  # as in the contest
        write_lines(file, [head, *lines, ""], newline, encoding)
    for task, table in zip(("genre", "affect"), expected):
        assert corpus.labels(task).equals(table)


def test_names_of_any_script_in_either_normal_form(corpus):
    name = "Ένα-παιδί"
    lines = genre_file(corpus).read_text().replace("11.", unicodedata.normalize("NFC", name) + ".")
    genre_file(corpus).write_text(lines, encoding="utf-8")
    path = corpus.root / "fma_genre_spectrograms" / "train" / "11.fused.full.npy"
    path.rename(path.with_name(unicodedata.normalize("NFD", name) + ".fused.full.npy"))
    assert corpus.labels("genre")["path"][0].is_file()


@pytest.mark.parametrize(
    "task, line, words",
    [
        ("genre", "11.fused.full.npy.gz\tRock", "'11' is listed twice"),
        ("genre", "999.fused.full.npy.gz\tPolka", "'Polka' is not in the class mapping"),
        ("genre", "\tRock", "has no name"),
        ("affect", "99,0.5,0.5,1.5", "numbers from 0 to 1"),
        ("affect", "99,0.5,0.5,nan", "numbers from 0 to 1"),
        ("affect", "99,0.5,0.5,", "numbers from 0 to 1"),
        ("affect", "99,0.5,0,5,0.1", "not a table"),
        ("affect", "7,0.5,0.5,0.5", "'7' is listed twice"),
    ],
)
def test_a_wrong_line_is_named_with_its_file(corpus, task, line, words):
    file = genre_file(corpus) if task == "genre" else affect_file(corpus)
    write_lines(file, [*file.read_text().splitlines(), line])
    with pytest.raises(CorpusError, match=words) as error:
        corpus.labels(task)
    assert str(file) in str(error.value)


def test_a_file_that_is_no_label_file_and_a_missing_one_are_named(corpus):
    for content in (b"", b"\xff\xfe\x00", b"Id;Genre\n1;Rock\n", b"\x00" * 50):
        genre_file(corpus).write_bytes(content)
        with pytest.raises(CorpusError, match="train_labels.txt"):
            corpus.labels("genre")
    genre_file(corpus).unlink()
    with pytest.raises(CorpusError, match="train_labels.txt: no such file"):
        corpus.labels("genre")


def test_a_missing_split_is_named(corpus):
    shutil.rmtree(corpus.root / "multitask_dataset" / "test")
    assert not corpus.has("affect", "test") and corpus.has("affect")
    with pytest.raises(CorpusError, match="no clips"):
        corpus.labels("affect", "test")


def test_a_listed_clip_without_a_file_is_left_out_and_said(corpus):
    (corpus.root / "fma_genre_spectrograms" / "train" / "13.fused.full.npy").unlink()
    with pytest.warns(CorpusWarning, match="1 of 24 listed clips .* 13"):
        assert "13" not in corpus.labels("genre")["id"].tolist()


def test_groups_are_those_of_the_file_of_the_task(corpus):
    write_lines(corpus.root / "multitask_dataset" / "groups.txt", ["Id\tGroup", "7\ta", "8\ta"])
    assert corpus.labels("affect")["group"].tolist()[:3] == ["a", "a", "9"]
    assert corpus.labels("genre")["group"].tolist()[:2] == ["train0", "train1"]


def test_own_class_mapping(corpus):
    assert corpus.mapping["Psych-Rock"] == "Rock"
    path = corpus.root / "class_mapping.json"
    path.write_text('{"Rock": "Loud", "Blues": "Loud", "Jazz": null}', encoding="utf-8")
    assert Corpus(corpus.root).mapping["Jazz"] is None
    for text in ("[1]", '{"Rock": 3}', "{", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(CorpusError, match="class_mapping.json"):
            Corpus(corpus.root).mapping  # noqa: B018


# --- arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.float16, ">f4"])
def test_arrays_of_any_number_type(tmp_path, gz, dtype):
    array = noise(np.random.default_rng(0), 30, 10, -20, 2, 0.5)
    path = save(tmp_path / "1.fused.full.npy", array.astype(dtype), gz)
    result = load_array(path)
    assert result.dtype == np.float32 and result.flags.writeable
    np.testing.assert_array_equal(result, array.astype(dtype).astype(np.float32))


NO_CLIPS = [((139, 4), 0), ((140, 0), 0), (140, 0)]
NO_CLIPS += [((140, 4), value) for value in (np.nan, 1e300, "x", 1j)]


@pytest.mark.parametrize("shape, value", NO_CLIPS)
def test_what_is_no_clip_is_named(tmp_path, shape, value):
    with pytest.raises(CorpusError, match="1.npy: not usable"):
        load_array(save(tmp_path / "1.npy", np.full(shape, value)))


def test_damaged_files_and_pickles_are_named(tmp_path):
    path = save(tmp_path / "1.npy", np.zeros((140, 20), np.float32), gz=True)
    whole = path.read_bytes()
    pickled = save(tmp_path / "2.npy", np.full((140, 4), {}), gz=True).read_bytes()
    flipped = whole[:60] + b"xx" + whole[62:]
    for spoilt in (whole[:-20], whole[:30], b"", b"no array", flipped, pickled):
        path.write_bytes(spoilt)
        with pytest.raises(CorpusError, match="not usable"):
            load_array(path)


def test_npy_wins_over_gz_and_hidden_files_do_not_count(corpus):
    folder = corpus.root / "fma_genre_spectrograms" / "train"
    save(folder / "11.fused.full.npy", np.zeros((140, 3)), gz=True)
    save(folder / "._11.fused.full.npy", np.zeros((140, 3)))
    (folder / "77.fused.full.npy.partial").write_bytes(b"")
    assert corpus.labels("genre")["path"][0].name == "11.fused.full.npy"
    table = corpus.describe().set_index(["folder", "split"])
    assert table.loc[("fma_genre_spectrograms", "train"), "files"] == 24
    assert table.loc[("multitask_dataset", "test"), ["files", "labels"]].tolist() == [6, "no"]


# --- fingerprint ----------------------------------------------------------------------------------


def test_fingerprint_notices_every_change_and_no_move(corpus, tmp_path):
    prints = {corpus.fingerprint}
    moved = Corpus(shutil.copytree(corpus.root, tmp_path / "moved"))
    assert moved.fingerprint == corpus.fingerprint
    array = corpus.root / "multitask_dataset" / "train" / "9.fused.full.npy"
    changes = [
        lambda: array.rename(array.with_name("10000.fused.full.npy")),
        lambda: (corpus.root / "class_mapping.json").write_text("{}"),
        lambda: (corpus.root / "audio.tsv").write_text("Id\tPath\n"),
        lambda: (corpus.root / "fma_genre_spectrograms_beat" / "groups.txt").unlink(),
    ]
    for folder in corpus.root.iterdir():
        for split in ("train", "test"):
            clip = max((folder / split).iterdir())
            other = np.full_like(load_array(clip), -40.0)  # of the same size
            changes.append(partial(save, clip, other))
        for file in folder.glob("*.txt"):
            changes.append(partial(file.write_text, file.read_text() + "\n"))
    for change in changes:
        change()
        prints.add(Corpus(corpus.root).fingerprint)
    assert len(prints) == 1 + len(changes)


def test_a_packed_arrays_fingerprint_is_of_the_whole(corpus):
    path = corpus.root / "fma_genre_spectrograms" / "train" / "11.fused.full.npy.gz"
    path.with_suffix("").unlink()
    array, prints = np.random.default_rng(0).normal(size=(140, 2000)), set()
    for array[70, 700] in (1.0, 1.001):
        content = io.BytesIO()
        np.save(content, array)
        path.write_bytes(gzip.compress(content.getvalue(), mtime=0))
        prints.add(Corpus(corpus.root).fingerprint)
    assert len(prints) == 2


# --- which corpus ---------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A work folder and Kaggle's input, both empty."""
    monkeypatch.setattr("labhelpers.corpus.work_folder", lambda: tmp_path / "work")
    monkeypatch.setenv("LABHELPERS_KAGGLE_INPUT", str(tmp_path / "input"))
    return tmp_path / "work", tmp_path / "input"


def test_the_order_of_places(places, tmp_path, monkeypatch, capsys):
    work, mounted = places
    small = {"train": 2, "test": 1, "affect": (4, 1)}
    make_corpus(work / "data" / "sample", **small)
    assert find_corpus().name == "sample"
    make_corpus(work / "data" / "zebra" / "data", **small)
    assert find_corpus().name == "zebra"
    make_corpus(mounted / "datasets" / "owner" / "slug" / "data" / "data", **small)
    assert find_corpus().name == "slug"
    monkeypatch.setenv("LABHELPERS_DATA", str(make_corpus(tmp_path / "named", **small).root))
    assert find_corpus().name == "named"
    assert find_corpus("sample").name == "sample"
    assert find_corpus(work / "data" / "zebra").name == "zebra"
    assert capsys.readouterr().out.splitlines()[-1] == "Corpus: zebra"


def test_a_corpus_that_is_not_there_is_said(places, tmp_path):
    _, mounted = places
    with pytest.raises(CorpusError, match="nowhere: no fma_genre"):
        find_corpus(tmp_path / "nowhere")
    mounted.mkdir()
    with pytest.raises(CorpusError, match="Add Input"):
        find_corpus()


def test_links_in_a_circle_end(tmp_path):
    os.symlink(tmp_path, tmp_path / "loop")
    with pytest.raises(CorpusError, match="no fma_genre"):
        find_corpus(tmp_path)
    root = make_corpus(tmp_path / "2024" / "x", train=2, test=1, affect=(4, 1)).root
    os.symlink(root, tmp_path / "0")
    assert find_corpus(tmp_path / "0").root.samefile(root)
    assert find_corpus(tmp_path / "2024").root == root
