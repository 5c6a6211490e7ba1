"""The sample corpus: the same from the same seed, whole or absent, and true to what it states."""

import os

import numpy as np
import pytest
import soundfile

from labhelpers import corpus as corpora
from labhelpers import sample
from labhelpers.audio import extract
from labhelpers.corpus import CLASS_MAPPING, Corpus, load_array
from labhelpers.sample import BAND, GENRES, affect, draw_style, make_sample, plan_clips, render
from labhelpers.sample import score as score_of


@pytest.fixture(scope="module")
def plan():
    return plan_clips()


@pytest.fixture
def small(plan, monkeypatch):
    """A plan of one clip for each task and split."""
    few = plan.groupby(["task", "split"]).head(1).reset_index(drop=True)
    monkeypatch.setattr(sample, "plan_clips", lambda: few.copy())
    return few


# --- the plan -------------------------------------------------------------------------------------


def test_sizes_keep_the_proportions_of_the_lab(plan):
    counts = plan.groupby(["task", "split"]).size()
    assert counts["genre", "train"] == 307
    assert counts["affect", "train"] == 160 and counts["affect", "test"] == 100
    genre = plan[plan["task"] == "genre"].groupby("split")["genre"]
    train, test = genre.get_group("train"), genre.get_group("test")
    assert np.abs(train.value_counts() / GENRES["n"] - 0.1).max() < 0.006
    classes = test.map(CLASS_MAPPING).dropna()
    lab = {"Rock": 103, "Electronic": 80, "Folk": 80, "Metal": 78, "Trip-Hop": 34}
    for name, share in classes.value_counts(normalize=True).items():
        assert share == pytest.approx(lab.get(name, 40) / 575, abs=0.015)
    assert len(classes) >= 200


def test_clips_of_a_track_share_task_split_and_genre(plan):
    tracks = plan.groupby("track")
    assert (tracks[["split", "task", "genre"]].nunique() == 1).all(axis=None)
    sizes = tracks.size().value_counts(normalize=True)
    assert set(sizes.index) == {1, 2, 3} and 0.2 < 1 - sizes[1] < 0.4
    assert not plan["id"].duplicated().any()


# --- the music ------------------------------------------------------------------------------------


def make_track(genre, seed):
    rng = np.random.default_rng(seed)
    return draw_style(genre, rng), rng


@pytest.mark.parametrize("genre", ["Metal", "Classical", "Jazz"])
def test_a_clip_depends_on_its_seed_and_nothing_else(genre):
    def clip(seed):
        style, rng = make_track(genre, seed)
        return render(style, 1.5, rng)

    one, other = clip(1), clip(2)
    np.testing.assert_array_equal(one, clip(1))
    assert len(one) == 220500 and np.abs(one).max() == pytest.approx(0.9)
    assert np.abs(one - other).max() > 0.1


def test_true_beats_are_where_the_drums_are():
    style, rng = make_track("Electronic", 3)
    style.update(drums="four", bpm=120.0, hats=0.0)  # strokes on the beats alone
    score = score_of(style, 2.3)
    assert score["beat"] == pytest.approx(0.4) and score["bar"] == pytest.approx(1.4)
    energy = sample._drums(style, 2.3, rng) ** 2
    since_beat = (np.arange(len(energy)) / 22050 - score["beat"]) % 0.5
    assert energy[(since_beat < 0.2) | (since_beat > 0.47)].sum() > 0.95 * energy.sum()


def test_true_chords_are_those_that_sound():
    right = []
    for seed, genre in enumerate(["Pop", "Folk", "Rock", "International"]):
        style, rng = make_track(genre, seed)
        score, bar = score_of(style, 1.4), 240 / style["bpm"]
        full, _ = extract(render(style, 1.4, rng), beats=False)
        names = score["chords"].split()
        for number in range(int((10 - score["bar"]) / bar)):
            begin = score["bar"] + number * bar
            columns = slice(int(begin * 43.07), int((begin + bar) * 43.07))
            chroma = full[128:, columns].mean(axis=1)
            root = BAND["pitches"].index(names[number % 4].split(":")[0])
            right.append(root in np.argsort(-chroma)[:3])
    assert np.mean(right) > 0.8


def test_every_style_has_chords_with_a_name():
    for seed in range(100):
        style, _ = make_track(GENRES.index[seed % 20], seed)
        score = score_of(style, 0.0)
        assert score["beat"] == score["bar"] == 0 and len(score["chords"].split()) == 4
        assert score["mode"] in ("major", "minor") and score["key"] in BAND["pitches"]


def test_affect_has_the_spread_of_the_echo_nest():
    rng = np.random.default_rng(0)
    styles = [draw_style(genre, rng) for genre in GENRES.index for _ in range(50)]
    labels = np.array([affect(style, rng) for style in styles])
    assert ((labels > 0) & (labels < 1)).all()
    np.testing.assert_allclose(labels.mean(axis=0), [0.440, 0.538, 0.487], atol=0.06)
    np.testing.assert_allclose(labels.std(axis=0), [0.276, 0.278, 0.190], atol=0.04)
    correlations = np.corrcoef(labels.T)[[0, 0, 1], [1, 2, 2]]  # VE, VD, ED
    np.testing.assert_allclose(correlations, [0.22, 0.43, 0.05], atol=0.15)


# --- the corpus -----------------------------------------------------------------------------------


def files_of(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_sample_is_whole_reproducible_and_keeps_the_answers_aside(small, tmp_path):
    make_sample(tmp_path / "one", jobs=1)
    make_sample(tmp_path / "two", jobs=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]
    corpus = Corpus(tmp_path / "one")
    assert corpus.is_sample
    for task in ("genre", "affect"):
        for split in ("train", "test"):
            for beat in (False, True):
                table = corpus.labels(task, split, beat)
                assert len(table) == 1 and table["group"][0].startswith("track ")
                assert load_array(table["path"][0]).shape[1] == 431 or beat
                assert soundfile.info(corpus.audio(table["id"][0])).duration == 10
    test = corpus.labels("affect", "test")
    assert "valence" not in test and set(corpus.answers()["id"]) == set(test["id"])
    truth = corpus.truth().loc[small["id"]]
    assert truth["genre"].tolist() == small["genre"].tolist()
    with pytest.raises(FileExistsError, match="already"):
        make_sample(tmp_path / "one")


def test_clips_of_a_track_share_style_and_labels_but_no_sound(plan, tmp_path, monkeypatch):
    pair = plan[plan.duplicated("track", keep=False) & (plan["task"] == "affect")]
    pair = pair[pair["split"] == "train"].sort_values("track").head(2).reset_index(drop=True)
    monkeypatch.setattr(sample, "plan_clips", lambda: pair.copy())
    make_sample(tmp_path / "pair", jobs=1)
    corpus = Corpus(tmp_path / "pair")
    labels, truth = corpus.labels("affect"), corpus.truth()
    assert truth[["bpm", "key", "mode", "drums"]].nunique().eq(1).all()
    assert truth["bar"].nunique() == 2
    assert labels[["group", *corpora.AFFECT]].nunique().eq(1).all()
    one, other = (soundfile.read(corpus.audio(clip))[0] for clip in labels["id"])
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.1


def test_a_build_that_stops_leaves_nothing(small, tmp_path, monkeypatch):
    def stop(work, todo, jobs):
        yield work(*todo[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, "in_processes", stop)
    with pytest.raises(KeyboardInterrupt):
        make_sample(tmp_path / "sample", jobs=1)
    assert not list(tmp_path.iterdir())
