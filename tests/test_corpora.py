"""Reading a corpus, its label files and arrays; and the sentence each kind of bad input gets."""

import gzip
import io
import os
import tracemalloc

import numpy as np
import pytest
from helpers_corpus import change_line, make_corpus, real_music, save, write_lines

from labhelpers.corpora.find import find_corpus
from labhelpers.corpora.layout import (
    CLASS_MAPPING,
    Corpus,
    CorpusError,
    CorpusWarning,
    array_shape,
    load_array,
    natural_key,
)

GENRE, AFFECT = "fma_genre_spectrograms", "multitask_dataset"


# --- labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("beat", [False, True])
def test_genre_labels_with_the_labs_names(corpus, beat):
    train, test = corpus.labels("genre", "train", beat), corpus.labels("genre", "test", beat)
    assert list(train) == ["id", "path", "group", "genre"]
    assert list(train["id"]) == [str(i) for i in range(11, 35)] and list(train["group"]) == list(
        train["id"]
    )
    assert list(train["genre"]) == ["Rock"] * 8 + ["Blues"] * 8 + ["Jazz"] * 8
    assert list(test["id"]) == [str(i) for i in range(501, 510)]
    assert all(
        p.name == f"{i}.fused.full.npy" and p.is_file()
        for i, p in zip(train["id"], train["path"], strict=True)
    )
    assert train["path"][0].parent.parent.name == (GENRE + "_beat" if beat else GENRE)


def test_affect_labels(corpus):
    train, test = corpus.labels("affect"), corpus.labels("affect", "test")
    assert list(train) == ["id", "path", "group", "valence", "energy", "danceability"]
    line = (corpus.root / AFFECT / "train_labels.txt").read_text().splitlines()[3]
    assert [train["id"][2], *train.iloc[2, 3:]] == [
        line.split(",")[0],
        *map(float, line.split(",")[1:]),
    ]
    assert list(test) == ["id", "path", "group"]
    assert list(test["id"]) == [str(i) for i in range(27, 33)]


def test_test_clips_come_in_the_order_of_their_numbers(corpus):
    for name in ("100", "9"):
        save(corpus.root / AFFECT / "test" / f"{name}.fused.full.npy", np.zeros((140, 3)))
    ids = list(corpus.labels("affect", "test")["id"])
    assert ids[0] == "9" and ids[-1] == "100"


@pytest.mark.parametrize(
    "encoding, newline", [("utf-8-sig", "\r\n"), ("utf-8", "\r\n"), ("utf-8-sig", "\n")]
)
@pytest.mark.parametrize("task, folder", [("genre", GENRE), ("affect", AFFECT)])
def test_bom_crlf_and_blank_lines_are_accepted(corpus, task, folder, encoding, newline):
    path, plain = corpus.root / folder / "train_labels.txt", corpus.labels(task)
    write_lines(path, [*path.read_text().splitlines(), "", "  "], newline, encoding)
    assert corpus.labels(task).equals(plain)


def test_gz_and_unpacked_files_and_what_else_lies_there(tmp_path):
    corpus = make_corpus(tmp_path / "gz", gz=True)
    folder = corpus.root / AFFECT / "test"
    assert corpus.labels("affect", "test")["path"][0].name == "27.fused.full.npy.gz"
    for name in (
        "._27.fused.full.npy",
        ".hidden.npy",
        "99.fused.full.npy.part",
        "99.npy.tmp",
        "readme.txt",
        "27",
    ):
        (folder / name).write_bytes(b"")
    unpacked = save(folder / "27.fused.full.npy", np.zeros((140, 3)))
    table = corpus.labels("affect", "test")
    assert list(table["id"]) == [str(i) for i in range(27, 33)]
    assert table["path"][0] == unpacked


def test_groups(corpus):
    write_lines(corpus.root / GENRE / "groups.txt", ["Id\tGroup", "11\ttrack a", "12\ttrack a"])
    assert list(corpus.labels("genre")["group"][:3]) == ["track a", "track a", "13"]
    change_line(corpus.root / GENRE / "groups.txt", 3, "12")
    with pytest.raises(CorpusError, match="groups.txt, line 3: .*a tab"):
        corpus.labels("genre")


@pytest.mark.parametrize(
    "line, text, words",
    [
        (1, "11.fused.full.npy.gz\tRock", ["line 1", "header", "Id", "Genre"]),  # missing
        (1, "Id,Genre", ["line 1", "header", "a tab"]),
        (
            4,
            "13.fused.full.npy.gz,Rock",
            ["line 4", "a tab", "13.fused.full.npy.gz,Rock"],
        ),  # wrong separator
        (4, "13.fused.full.npy.gz", ["line 4", "2 fields"]),  # short
        (4, "13.fused.full.npy.gz\tRock\tPop", ["line 4", "2 fields"]),
        (4, "13.fused.full.npy.gz\tRokc", ["line 4", "'Rokc'", "known: Blues, Chiptune"]),
        (4, "11.fused.full.npy.gz\tRock", ["line 4", "clip 11", "line 2", "remove"]),  # duplicate
        (4, "11\tRock", ["line 4", "clip 11", "line 2", "remove"]),  # … under another of its names
        (4, "../x\tRock", ["line 4", "'../x'", "letters"]),
        (4, "/etc/passwd\tRock", ["line 4", "'/etc/passwd'"]),
        (4, "a/../../13.fused.full.npy.gz\tRock", ["line 4", "letters"]),
        (4, "..\tRock", ["line 4", "letters"]),
        (4, "\tRock", ["line 4", "letters"]),
    ],
)
def test_bad_genre_lines(corpus, line, text, words):
    path = change_line(corpus.root / GENRE / "train_labels.txt", line, text)
    with pytest.raises(CorpusError) as caught:
        corpus.labels("genre")
    assert all(word in str(caught.value) for word in [str(path), *words]), caught.value


@pytest.mark.parametrize(
    "line, text, words",
    [
        (1, "7,0.5,0.5,0.5", ["line 1", "header", "Id,valence,energy,danceability"]),
        (
            1,
            "Id,energy,valence,danceability",
            ["line 1", "header"],
        ),  # swapped columns are not read as if in order
        (1, "Id\tvalence\tenergy\tdanceability", ["line 1", "a comma"]),
        (3, "8\t0.1\t0.2\t0.3", ["line 3", "a comma"]),
        (3, "8,0.1,0.2", ["line 3", "4 fields"]),
        (3, "8,0.1,1.2,0.3", ["line 3", "energy is '1.2'", "0 to 1"]),
        (3, "8,-0.1,0.2,0.3", ["line 3", "valence is '-0.1'", "0 to 1"]),
        (3, "8,0.1,0.2,loud", ["line 3", "danceability is 'loud'", "0 to 1"]),
        (3, "8,0.1,,0.3", ["line 3", "energy is ''"]),
        (3, "8,nan,0.2,0.3", ["line 3", "valence is 'nan'"]),
        (3, "8,inf,0.2,0.3", ["line 3", "valence is 'inf'"]),
        (3, "7,0.1,0.2,0.3", ["line 3", "clip 7", "line 2"]),
        (3, "../8,0.1,0.2,0.3", ["line 3", "'../8'"]),
    ],
)
def test_bad_affect_lines(corpus, line, text, words):
    path = change_line(corpus.root / AFFECT / "train_labels.txt", line, text)
    with pytest.raises(CorpusError) as caught:
        corpus.labels("affect")
    assert all(word in str(caught.value) for word in [str(path), *words]), caught.value


def test_the_contests_header_with_a_file_name_pattern(corpus):
    path = corpus.root / AFFECT / "train_labels.txt"
    plain = corpus.labels("affect")
    lines = [line.replace(",", ".fused.full.npy.gz,", 1) for line in path.read_text().splitlines()]
    write_lines(path, lines)
    assert lines[0].startswith("Id.fused") and corpus.labels("affect").equals(plain)


def test_label_file_absent_empty_or_no_text(corpus):
    path = corpus.root / GENRE / "train_labels.txt"
    path.write_bytes("Id\tGenre\n11\tRöck\n".encode("latin-1"))
    with pytest.raises(CorpusError, match="train_labels.txt: not UTF-8"):
        corpus.labels("genre")
    path.write_bytes(b"")
    with pytest.raises(CorpusError, match="line 1: the header.*empty file"):
        corpus.labels("genre")
    path.unlink()
    with pytest.raises(CorpusError, match="train_labels.txt: no such label file; check"):
        corpus.labels("genre")
    path.mkdir()
    with pytest.raises(CorpusError, match="train_labels.txt: cannot be read"):
        corpus.labels("genre")


def test_absent_clip_is_left_out_and_named(corpus):
    (corpus.root / GENRE / "train" / "13.fused.full.npy").unlink()
    with pytest.warns(
        CorpusWarning, match=r"train_labels.txt: 1 of 24 listed clips .*\(13\); restore"
    ):
        table = corpus.labels("genre")
    assert "13" not in set(table["id"]) and len(table) == 23
    assert table["path"][2].name.startswith("14.")


def test_empty_split(corpus):
    path = corpus.root / GENRE / "train_labels.txt"
    write_lines(path, ["Id\tGenre"])
    with pytest.raises(CorpusError, match=f"{GENRE}.train: no clips; check"):
        corpus.labels("genre")
    with pytest.raises(CorpusError, match="elsewhere.*no such folder; check"):
        Corpus(corpus.root / "elsewhere").labels("genre")
    assert corpus.has("genre", "test", beat=True) and not Corpus(corpus.root / "elsewhere").has(
        "genre"
    )


def test_class_mapping():
    before = {
        "Metal": 153,
        "Trip-Hop": 137,
        "Soundtrack": 124,
        "Post-Rock": 95,
    }  # all others 160: the lab's counts
    after = {}
    for genre, kind in CLASS_MAPPING.items():
        if kind is not None:
            after[kind] = after.get(kind, 0) + before.get(genre, 160)
    small = dict.fromkeys(["Pop", "Hip-Hop", "Classical", "Blues", "Jazz"], 160)
    assert after == {
        "Rock": 415,
        "Folk": 320,
        "Electronic": 320,
        "Metal": 313,
        "Trip-Hop": 137,
        **small,
    }
    assert len(CLASS_MAPPING) == 20


def test_own_class_mapping(tmp_path, corpus):
    own = corpus.root / "class_mapping.json"
    own.write_text('{"Rock": "loud", "Blues": "loud", "Jazz": null}')
    assert Corpus(corpus.root).mapping == {"Rock": "loud", "Blues": "loud", "Jazz": None}
    change_line(corpus.root / GENRE / "train_labels.txt", 2, "11.fused.full.npy.gz\tPop")
    with pytest.raises(
        CorpusError, match="line 2: no genre 'Pop' in the class mapping; known: Blues, Jazz, Rock"
    ):
        Corpus(corpus.root).labels("genre")
    for text in ("{", "[]", '{"Rock": 3}'):
        own.write_text(text)
        with pytest.raises(CorpusError, match="class_mapping.json: not "):
            Corpus(corpus.root).labels("genre")


# --- the rest of a corpus -------------------------------------------------------------------------


def test_audio(corpus):
    assert corpus.audio("11") is None
    (corpus.root / "audio").mkdir()
    (corpus.root / "audio" / "11.ogg").touch()
    write_lines(corpus.root / "audio.tsv", ["Id\tPath", "11\taudio/11.ogg", "12\taudio/12.ogg"])
    again = Corpus(corpus.root)
    assert again.audio("11") == corpus.root / "audio" / "11.ogg"
    assert again.audio("12") is None and again.audio("13") is None
    write_lines(corpus.root / "audio.tsv", ["11\taudio/11.ogg"])
    with pytest.raises(CorpusError, match="audio.tsv: not a table with columns Id and Path"):
        Corpus(corpus.root).audio("11")


def test_answers_and_description(corpus):
    assert corpus.answers() is None and not corpus.is_sample
    table = corpus.describe()
    assert list(table["files"]) == [24, 9, 24, 9, 20, 6, 20, 6]
    assert list(table["labels"]) == ["yes"] * 5 + ["no", "yes", "no"]
    write_lines(
        corpus.root / "kept_aside" / "multitask_test_labels.txt",
        ["Id,valence,energy,danceability", "27,0,1,.5"],
    )
    assert corpus.is_sample and corpus.answers().iloc[0].tolist() == ["27", 0.0, 1.0, 0.5]


def test_fingerprint_follows_labels_and_arrays(corpus):
    seen = [Corpus(corpus.root).fingerprint]
    assert Corpus(corpus.root).fingerprint == seen[0]

    def changed():
        seen.append(Corpus(corpus.root).fingerprint)
        return len(set(seen)) == len(seen)

    change_line(corpus.root / GENRE / "train_labels.txt", 2, "11.fused.full.npy.gz\tJazz")
    assert changed()
    write_lines(corpus.root / GENRE / "groups.txt", ["Id\tGroup", "11\t1"])
    assert changed()
    (corpus.root / "class_mapping.json").write_text("{}")
    assert changed()
    save(corpus.root / AFFECT / "test" / "27.fused.full.npy", np.zeros((140, 99)))
    assert changed()
    (corpus.root / AFFECT / "test" / "28.fused.full.npy").unlink()
    assert changed()


def test_fingerprint_is_of_the_content_not_the_place(corpus, tmp_path):
    twin = corpus.root.rename(tmp_path / "moved")
    (twin / "notes.txt").write_text("not part of it")
    (twin / "some.folder").mkdir()
    assert Corpus(twin).fingerprint == make_corpus(corpus.root).fingerprint


def test_ids_of_any_script(corpus):
    ids = ["Μινόρε", "🎵", "1²", "10"]
    for clip in ids:
        save(corpus.root / AFFECT / "test" / f"{clip}.fused.full.npy", np.zeros((140, 3)))
    assert set(ids) <= set(corpus.labels("affect", "test")["id"])
    assert natural_key("1²") and natural_key("9") < natural_key("10")
    change_line(corpus.root / GENRE / "train_labels.txt", 2, "🎵.fused.full.npy.gz\tRock")
    save(corpus.root / GENRE / "train" / "🎵.npy", np.zeros((140, 3)))
    assert corpus.labels("genre")["id"][0] == "🎵"


def test_a_link_that_leads_nowhere_costs_one_clip(corpus):
    path = corpus.labels("genre")["path"][0]
    before = corpus.fingerprint
    path.unlink()
    path.symlink_to(path.with_name("absent"))
    assert Corpus(corpus.root).fingerprint != before
    assert corpus.describe()["files"][0] == 24
    wrong = [problem for _, problem in corpus.check() if problem]
    assert len(wrong) == 1 and path.name in str(wrong[0])


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda mel, chroma: (10 ** (mel / 10), chroma), "rows 0-127"),  # power, not dB
        (lambda mel, chroma: (mel + 80, chroma), "rows 0-127"),
        (lambda mel, chroma: (mel / 100, chroma), "rows 0-127"),  # bels by ten too few: no depth
        (lambda mel, chroma: (mel, 2 * chroma), "rows 128-139"),
        (lambda mel, chroma: (mel, chroma - 1), "rows 128-139"),
        (lambda mel, chroma: (chroma.repeat(11, axis=0)[:128], mel[:12]), "rows 0-127"),
    ],
)
def test_check_notices_values_that_no_extractor_makes(corpus, change, words):
    checked = list(corpus.check())
    assert len(checked) == 24 + 9 + 24 + 9 + 20 + 6 + 20 + 6
    assert not any(problem for _, problem in checked)
    path = corpus.labels("affect", "train", beat=True)["path"][3]
    array = load_array(path)
    save(path, np.concatenate(change(array[:128], array[128:])))
    wrong = [problem for _, problem in corpus.check() if problem]
    assert len(wrong) == 1 and str(path) in str(wrong[0]) and words in str(wrong[0])


# --- arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float16", ">f8", "int16", "uint8"])
@pytest.mark.parametrize("gz", [False, True])
def test_numbers_of_any_kind_become_float32(tmp_path, dtype, gz):
    array = np.arange(140 * 3).reshape(140, 3) % 100
    path = save(tmp_path / "1.fused.full.npy", array.astype(dtype), gz)
    loaded = load_array(path)
    assert loaded.dtype == np.float32 and loaded.flags.writeable
    np.testing.assert_array_equal(loaded, array)
    assert array_shape(path) == (140, 3)


def test_fortran_order(tmp_path):
    array = np.asfortranarray(np.random.default_rng(0).random((140, 5)))
    np.testing.assert_allclose(load_array(save(tmp_path / "1.npy", array)), array, rtol=1e-6)


def spoilt(kind):
    """The bytes of an array file with something wrong, by name."""
    good = np.zeros((140, 20), np.float32)
    arrays = {
        "rows": np.zeros((128, 20)),
        "flat": np.zeros(140),
        "cube": np.zeros((140, 20, 1)),
        "no columns": np.zeros((140, 0)),
        "object": np.array([[{}] * 20] * 140),
        "text": np.full((140, 20), "a"),
        "complex": np.zeros((140, 20), complex),
        "nan": np.where(np.arange(20) == 7, np.nan, good),
        "inf": np.where(np.arange(20) == 7, -np.inf, good),
        "overflow": np.full((140, 20), 1e300),
    }
    stream = io.BytesIO()
    np.save(stream, arrays.get(kind, good))
    data = stream.getvalue()
    return {
        "truncated": data[:-1],
        "half": data[: len(data) // 2],
        "header only": data[:128],
        "part of the header": data[:60],
        "nothing": b"",
        "longer": data + b"\0",
        "no array": b"<html>not found</html>" * 99,
        "version 2": data[:6] + b"\x02\x00" + b"\xff\xff\xff\x7f" + data[10:],
    }.get(kind, data)


@pytest.mark.parametrize(
    "kind, word",
    [
        ("truncated", "truncated"),
        ("half", "truncated"),
        ("header only", "truncated"),
        ("longer", "longer"),
        ("part of the header", "not a NumPy array"),
        ("nothing", "not a NumPy array"),
        ("no array", "not a NumPy"),
        ("version 2", "not a NumPy array"),
        ("rows", r"\(128, 20\)"),
        ("flat", "shape"),
        ("cube", "shape"),
        ("no columns", r"\(140, 0\)"),
        ("object", "object"),
        ("text", "not numbers"),
        ("complex", "not numbers"),
        ("nan", "NaN"),
        ("inf", "NaN or inf"),
    ],
)
@pytest.mark.parametrize("gz", [False, True])
def test_bad_arrays(tmp_path, kind, word, gz):
    path = tmp_path / ("5.fused.full.npy.gz" if gz else "5.fused.full.npy")
    path.write_bytes(gzip.compress(spoilt(kind)) if gz else spoilt(kind))
    with pytest.raises(CorpusError, match=f"5.fused.full.npy.*{word}.*again"):
        load_array(path)


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_values_beyond_float32(tmp_path):
    path = tmp_path / "5.npy"
    path.write_bytes(spoilt("overflow"))
    with pytest.raises(CorpusError, match="infinite"):
        load_array(path)


def test_a_pickle_is_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    array = np.empty((140, 2), object)
    array[:] = Trap()
    path = save(tmp_path / "5.npy", array)
    for read in (load_array, array_shape):
        with pytest.raises(CorpusError, match="object values"):
            read(path)
    assert not (tmp_path / "sprung").exists()


def test_gz_that_is_none_or_is_cut(tmp_path):
    path = tmp_path / "5.fused.full.npy.gz"
    whole = gzip.compress(spoilt("good") + np.random.default_rng(0).bytes(2000))
    for data in (
        spoilt("good"),
        whole[: len(whole) // 2],
        whole[:100] + b"\xff" * 50 + whole[150:],
        b"",
    ):
        path.write_bytes(data)
        with pytest.raises(CorpusError, match="5.fused.full.npy.gz: .*again"):
            load_array(path)


def test_gz_that_expands_beyond_reason(tmp_path):
    path = tmp_path / "5.fused.full.npy.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(spoilt("good"))
        for _ in range(64):
            stream.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(CorpusError, match="longer than its header says"):
        load_array(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_header_that_promises_too_much(tmp_path):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "<f4", "fortran_order": False, "shape": (140, 10**9)}
    )
    (tmp_path / "5.npy").write_bytes(stream.getvalue())
    with pytest.raises(CorpusError, match="1000000000"):
        load_array(tmp_path / "5.npy")


def test_absent_file(tmp_path):
    with pytest.raises(CorpusError, match="5.npy: cannot be read"):
        load_array(tmp_path / "5.npy")


def test_damaged_bytes_raise_nothing_else(tmp_path):
    good, rng, path = bytearray(spoilt("good")), np.random.default_rng(0), tmp_path / "5.npy"
    refused = 0
    for _ in range(300):
        bad = good.copy()
        for place in rng.integers(0, 128, 3):
            bad[place] = rng.integers(256)
        path.write_bytes(bad)
        try:
            assert load_array(path).shape[0] == 140
        except CorpusError:
            refused += 1
    assert refused > 100


# --- real music -----------------------------------------------------------------------------------


def test_real_music():
    corpus = find_corpus(real_music() / "emotify")
    assert corpus.name == "emotify" and not corpus.is_sample
    train = corpus.labels("genre", beat=True)
    assert (len(train), train["group"].nunique(), len(corpus.labels("genre", "test"))) == (
        636,
        320,
        159,
    )
    assert (len(corpus.labels("affect")), len(corpus.labels("affect", "test"))) == (320, 80)
    assert load_array(train["path"][0]).shape[0] == 140
