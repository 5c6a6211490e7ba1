"""The sample corpus: the same from the same seed, whole or absent, neither trivial nor hopeless."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR

from labhelpers.corpora import sample as synth
from labhelpers.corpora.layout import AFFECT, CLASS_MAPPING, Corpus, CorpusError, load_array
from labhelpers.corpora.sample import GENRES, affect, draw_style, make_sample
from labhelpers.corpora.synth import render
from labhelpers.files import project_root


@pytest.fixture
def small(monkeypatch):
    """A sample of four clips: one of each task and split."""
    whole = synth.plan_clips(0)
    few = whole.groupby(["task", "split"]).head(1).reset_index(drop=True)
    monkeypatch.setattr(synth, "plan_clips", lambda seed: few.copy())
    return few


def test_the_plan_has_the_real_proportions():
    clips = synth.plan_clips(0)
    counts = clips.groupby(["task", "split"]).size()
    assert counts.to_dict() == {
        ("affect", "test"): 24,
        ("affect", "train"): 70,
        ("genre", "test"): 48,
        ("genre", "train"): 191,
    }
    train = clips[(clips["task"] == "genre") & (clips["split"] == "train")]["genre"].value_counts()
    assert (
        train["Rock"] == 10 and train["Post-Rock"] == 6 and set(train.index) == set(CLASS_MAPPING)
    )
    merged = (
        clips.assign(merged=clips["genre"].map(CLASS_MAPPING))
        .query("task == 'genre'")
        .groupby("split")["merged"]
        .count()
    )
    assert merged["train"] == 143 and merged["test"] in range(33, 39)


def test_sample_is_whole_reproducible_and_keeps_the_answers_aside(small, tmp_path):
    one = make_sample(tmp_path / "one", jobs=1, progress=False)
    two = make_sample(tmp_path / "two", jobs=2, progress=False)
    files = {path.relative_to(one): path.read_bytes() for path in one.rglob("*") if path.is_file()}
    assert files == {
        path.relative_to(two): path.read_bytes() for path in two.rglob("*") if path.is_file()
    }
    corpus = Corpus(one)
    assert corpus.is_sample and corpus.name == "one"
    for task in ("genre", "affect"):
        for split in ("train", "test"):
            for beat in (False, True):
                table = corpus.labels(task, split, beat)
                assert len(table) == 1 and corpus.audio(table["id"][0]).suffix == ".flac"
                assert load_array(table["path"][0]).shape[1] == 431 or beat
    assert set(corpus.answers()["id"]) == set(corpus.labels("affect", "test")["id"])
    assert "valence" not in corpus.labels("affect", "test")
    with pytest.raises(CorpusError, match="already"):
        make_sample(one)


def test_an_interrupted_build_leaves_nothing(small, tmp_path, monkeypatch):
    def interrupt(work, todo, *_, **__):
        yield todo[0], work(*todo[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(synth, "in_processes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_sample(tmp_path / "sample", jobs=1, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_gets_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CorpusError, match="cannot be written"):
        make_sample(tmp_path / "file" / "sample")


@pytest.mark.parametrize("genre", ["Metal", "Classical", "Jazz"])
def test_a_clip_depends_on_its_seed_and_nothing_else(genre):
    def clip(seed):
        rng = np.random.default_rng(seed)
        return render(draw_style(genre, rng), rng)

    y = clip(1)
    np.testing.assert_array_equal(y, clip(1))
    assert (
        len(y) == 220500
        and np.abs(y).max() == pytest.approx(0.9)
        and np.abs(y - clip(2)).max() > 0.1
    )


def test_affect_has_the_spread_of_the_echo_nest():
    rng = np.random.default_rng(0)
    labels = np.array(
        [affect(draw_style(genre, rng), rng) for genre in GENRES.index for _ in range(50)]
    )
    assert ((labels > 0) & (labels < 1)).all()
    np.testing.assert_allclose(labels.mean(axis=0), [0.440, 0.538, 0.487], atol=0.06)
    np.testing.assert_allclose(labels.std(axis=0), [0.276, 0.278, 0.190], atol=0.04)
    valence_energy, valence_dance, energy_dance = np.corrcoef(labels.T)[[0, 0, 1], [1, 2, 2]]
    assert (
        abs(valence_dance - 0.43) < 0.15
        and abs(valence_energy - 0.22) < 0.15
        and abs(energy_dance - 0.05) < 0.2
    )


# --- the built sample -----------------------------------------------------------------------------


def statistics(table):
    """Mean, standard deviation and mean |difference| of each row: (N, 420)."""
    arrays = [load_array(path) for path in table["path"]]
    return np.array(
        [[S.mean(1), S.std(1), np.abs(np.diff(S, axis=1)).mean(1)] for S in arrays]
    ).reshape(len(arrays), -1)


@pytest.fixture(scope="module")
def sample():
    root = project_root() / "data" / "sample"
    if not root.is_dir():
        pytest.skip("the sample is not built yet (labhelpers data sample)")
    return Corpus(root)


def test_an_svm_on_row_statistics_is_neither_lost_nor_perfect(sample):
    train, test = (sample.labels("genre", split) for split in ("train", "test"))

    def accuracy(mapping):
        parts = [
            part.assign(merged=part["genre"].map(mapping)).dropna(subset="merged")
            for part in (train, test)
        ]
        model = make_pipeline(StandardScaler(), SVC(C=10)).fit(
            statistics(parts[0]), parts[0]["merged"]
        )
        return model.score(statistics(parts[1]), parts[1]["merged"])

    merged = accuracy(CLASS_MAPPING)
    assert 0.45 <= merged <= 0.80
    assert accuracy({genre: genre for genre in CLASS_MAPPING}) < merged  # merging matters


def test_affect_can_be_learnt(sample):
    train, test, answers = (
        sample.labels("affect"),
        sample.labels("affect", "test"),
        sample.answers(),
    )
    answers = answers.set_index("id").loc[test["id"]]
    X, unseen = statistics(train), statistics(test)
    for axis in AFFECT:
        model = make_pipeline(StandardScaler(), SVR(C=1, epsilon=0.05)).fit(X, train[axis])
        assert 0.4 <= spearmanr(model.predict(unseen), answers[axis]).statistic <= 0.85, axis
