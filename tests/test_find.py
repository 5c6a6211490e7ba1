"""Which corpus the notebooks take, and what is said on Kaggle when none is attached."""

import os
from types import SimpleNamespace

import pytest
from helpers_corpus import write_lines

from labhelpers.corpora import find
from labhelpers.corpora.find import find_corpus, kaggle_reports, locate, mounts
from labhelpers.corpora.layout import FOLDERS, MARKER, CorpusError

SLUG = "patreco3-multitask-affective-music"


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A world without any corpus, not even Kaggle's input; all of it is below this folder."""
    monkeypatch.setattr(find, "KAGGLE_INPUT", tmp_path / "kaggle" / "input")
    monkeypatch.setattr(find, "MOUNT_WAIT", 0.2)
    monkeypatch.setattr(find, "project_root", lambda: tmp_path / "project")
    monkeypatch.setattr(find, "make_sample", lambda out: (put(out) / "kept_aside").mkdir())
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    (tmp_path / "work" / "notebooks").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "notebooks")
    return tmp_path


@pytest.fixture
def kaggle(nowhere):
    """The same world on Kaggle; returns its input folder, with nothing attached."""
    find.KAGGLE_INPUT.mkdir(parents=True)
    return find.KAGGLE_INPUT


def put(folder):
    """The marker file alone, and the folder of arrays that a search should not enter."""
    write_lines(folder / MARKER, ["Id\tGenre"])
    (folder / MARKER).with_name("train").mkdir()
    return folder.resolve()


# --- elsewhere ------------------------------------------------------------------------------------


def test_order_of_search(nowhere, monkeypatch):
    """Each place is preferred to those put before it."""
    sample = put(nowhere / "project" / "data" / "sample")
    assert find_corpus().root == sample
    ours = put(nowhere / "project" / "data" / "ours")
    assert find_corpus().root == ours
    beside = put(nowhere / "work" / "input" / "data" / "data")
    assert find_corpus().root == beside
    mounted = put(find.KAGGLE_INPUT / "slug")
    assert find_corpus().root == mounted
    named = put(nowhere / "named")
    monkeypatch.setenv("LABHELPERS_DATA", str(named))
    assert find_corpus().root == named
    assert find_corpus(ours.parent / "ours").root == ours
    assert find_corpus(str(nowhere / "named")).root == named  # a string, the folder itself


@pytest.mark.parametrize("how", ["DATA", "LABHELPERS_DATA"])
def test_named_folder_without_corpus(nowhere, monkeypatch, how):
    put(find.KAGGLE_INPUT / "slug")  # not taken instead: the user asked for another
    if how == "LABHELPERS_DATA":
        monkeypatch.setenv("LABHELPERS_DATA", str(nowhere / "absent"))
    with pytest.raises(CorpusError, match=f"{how} = .*absent.*train_labels.txt.*name the"):
        find_corpus(nowhere / "absent" if how == "DATA" else None)


def test_nothing_anywhere_builds_the_sample_once_and_warns(nowhere, capsys):
    corpus = find_corpus()
    said = capsys.readouterr().out
    assert "building the sample" in said.lower() and "nothing about real music" in said
    assert corpus.is_sample and corpus.name == "sample"
    assert find_corpus().root == corpus.root and "Building" not in capsys.readouterr().out


@pytest.mark.parametrize("how", ["DATA", "LABHELPERS_DATA"])
@pytest.mark.parametrize("attached", [False, True])
def test_the_sample_by_name_is_taken_anywhere(kaggle, monkeypatch, how, attached):
    if attached:
        put(kaggle / "slug")
    if how == "LABHELPERS_DATA":
        monkeypatch.setenv("LABHELPERS_DATA", "sample")
    corpus = find_corpus("sample" if how == "DATA" else None)
    assert corpus.is_sample and corpus.how == f"named by {how}"


def test_search_passes_by_what_it_may_not_read(nowhere, monkeypatch):
    root, locked, read = put(find.KAGGLE_INPUT / "z"), find.KAGGLE_INPUT / "a", os.scandir
    locked.mkdir()

    def scandir(path):
        if path == locked:
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert find_corpus().root == root


def test_links_to_the_top_cost_nothing(tmp_path, monkeypatch):
    """Each folder is looked into once, by whatever path, and a folder of arrays never."""
    looked, read = [], os.scandir
    for number in range(12):
        (tmp_path / f"link{number}").symlink_to(tmp_path, target_is_directory=True)
    root = put(tmp_path / "a" / "b" / "c")

    def scandir(path):
        looked.append(os.path.realpath(path))
        return read(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert locate(tmp_path) == root
    assert sorted(looked) == sorted(str(path) for path in (tmp_path, *root.parents[:2]))
    assert locate(tmp_path / "a", skip="b") is None
    assert str(root / FOLDERS["genre", False] / "train") not in looked


def test_a_link_to_the_corpus_is_followed(tmp_path):
    root = put(tmp_path / "elsewhere" / "corpus")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").symlink_to(root, target_is_directory=True)
    assert locate(tmp_path / "data") == tmp_path / "data" / "mine"


# --- on Kaggle ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place, name",
    [
        ("data/data", "kaggle"),
        (f"{SLUG}/data", SLUG),
        (f"datasets/someone/{SLUG}/data", SLUG),
        ("competitions/patreco-2022/data", "patreco-2022"),
        ("competitions/patreco-2022", "patreco-2022"),
    ],
)
def test_mounts_of_the_data(kaggle, capsys, place, name):
    root, corpus = put(kaggle / place), find_corpus()
    assert (corpus.root, corpus.name) == (root, name)
    assert f"{name} (found in Kaggle input)" in capsys.readouterr().out


@pytest.mark.parametrize("sign", ["input", "variable"])
def test_without_the_data_it_stops_and_says_the_clicks(nowhere, monkeypatch, sign):
    """Never the sample, nor what else may lie about."""
    put(nowhere / "project" / "data" / "sample")
    put(nowhere / "work" / "input")
    if sign == "input":
        (find.KAGGLE_INPUT / "datasets" / "me" / "labhelpers" / "labhelpers").mkdir(parents=True)
        (find.KAGGLE_INPUT / "other-data" / "files").mkdir(parents=True)
    else:
        monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    with pytest.raises(CorpusError) as caught:
        find_corpus()
    said = str(caught.value)
    attached = {"input": "/datasets/me/labhelpers, ", "variable": "Attached: nothing."}[sign]
    for part in (MARKER, "Add Input", find.LAB_DATA, "rules", "Run All", attached):
        assert part in said
    assert "Empty after 0 s: none" in said and said.endswith('DATA = "sample".')


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by sleeping alone; naps holds what was slept, meanwhile is called."""
    clock = SimpleNamespace(naps=[], meanwhile=lambda: None, monotonic=lambda: sum(clock.naps))

    def sleep(seconds):
        clock.naps.append(seconds)
        clock.meanwhile()

    clock.sleep = sleep
    monkeypatch.setattr(find, "time", clock)
    monkeypatch.setattr(find, "MOUNT_WAIT", 20)
    return clock


def test_an_empty_input_is_waited_for_and_named(kaggle, clock):
    (kaggle / "datasets" / "someone" / "music").mkdir(parents=True)
    (kaggle / "labhelpers" / "labhelpers").mkdir(parents=True)
    with pytest.raises(CorpusError, match="Empty after 20 s: [^,]*/datasets/someone/music[.]"):
        find_corpus()
    assert 20 <= sum(clock.naps) < 22


def test_an_input_that_fills_late_is_found(kaggle, clock):
    folder = kaggle / "competitions" / "patreco"
    folder.mkdir(parents=True)
    clock.meanwhile = lambda: len(clock.naps) == 3 and put(folder / "data")
    assert find_corpus().root == (folder / "data").resolve()
    assert len(clock.naps) == 3


def test_nothing_empty_is_not_waited_for(kaggle, clock):
    (kaggle / "music" / "data").mkdir(parents=True)
    with pytest.raises(CorpusError):
        find_corpus()
    assert not clock.naps


def test_reports_of_attached_notebooks(kaggle):
    """Both mounts of a kernel's output, in one order, whatever the order on disk."""
    places = ["labhelpers-07", "notebooks/me/labhelpers-06", "notebooks/me/labhelpers-05"]
    for place in places:
        (kaggle / place / "reports" / "music" / "records").mkdir(parents=True)
    (kaggle / "datasets" / "someone" / "music").mkdir(parents=True)
    (kaggle / "competitions" / "patreco").mkdir(parents=True)
    found = [kaggle / place for place in sorted(places)]
    assert [path.parents[1] for path in kaggle_reports("music") if path.is_dir()] == found
    assert set(found) < set(mounts()) and kaggle / "datasets/someone/music" in mounts()
    assert kaggle_reports("music")[0].name == "music"
