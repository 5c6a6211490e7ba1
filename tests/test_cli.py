"""The command line: what it hands on, and what a user sees when something is wrong."""

import numpy as np
import pytest

from labhelpers.corpora import extract as features
from labhelpers.corpora.layout import CorpusError
from labhelpers.records import RunError
from labhelpers.series import cli
from labhelpers.series import run as report


@pytest.fixture
def run_series(monkeypatch):
    """Stands in for the runner; keeps what it was called with."""
    calls = []

    def fake(*args, **options):
        calls.append((args, options))
        return "index.html"

    monkeypatch.setattr(report, "run_series", fake)
    return calls


def test_report_hands_its_options_on(run_series, capsys):
    line = "report --data d --out o --only 00,01 --from 00 -p EPOCHS 5 -p DEVICE cpu --fresh --code"
    assert cli.main(line.split()) == 0
    ((data, out), options) = run_series[0]
    assert (str(data), str(out)) == ("d", "o")
    assert options == {
        "only": "00,01",
        "start": "00",
        "parameters": {"EPOCHS": "5", "DEVICE": "cpu"},
        "fresh": True,
        "code": True,
    }
    assert capsys.readouterr().out == "index.html\n"


@pytest.mark.parametrize(
    "error", [CorpusError("a.txt, line 3: wrong"), RunError("run 05 first"), OSError(28, "No space left", "x.npy")]
)
def test_known_errors_are_one_sentence(monkeypatch, capsys, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(report, "run_series", fail)
    assert cli.main(["report"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("labhelpers: ") and said.count("\n") == 1 and "Traceback" not in said and "Errno" not in said


def test_faults_of_ours_keep_their_trace_and_ctrl_c_is_130(monkeypatch, capsys):
    def fail(*_, **__):
        raise raised

    monkeypatch.setattr(report, "run_series", fail)
    raised = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        cli.main(["report"])
    raised = KeyboardInterrupt()
    assert cli.main(["report"]) == 130 and "Stopped" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["", "report --from", "report -p EPOCHS", "bench speed", "data", "kaggle", "predict"])
def test_wrong_usage_exits_with_2(line, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(line.split())
    assert stop.value.code == 2 and "usage: labhelpers" in capsys.readouterr().err


@pytest.mark.parametrize("strict, status", [([], 0), (["--strict"], 1)])
def test_extract_fails_on_a_bad_file_only_if_asked(monkeypatch, capsys, strict, status):
    summary = features.Summary(done=3, skipped=0, failed=[("bad.mp3", "bad.mp3: not audio")])
    monkeypatch.setattr(features, "extract_folder", lambda audio, out, **options: summary)
    assert cli.main(["extract", "audio", "out", "--jobs", "1", *strict]) == status
    assert "bad.mp3" in capsys.readouterr().out


def test_data_check_reads_everything_and_names_each_problem(corpus, capsys):
    assert cli.main(["data", "check", "--data", str(corpus.root)]) == 0
    assert "0 problems" in capsys.readouterr().out
    table = corpus.labels("genre")
    table["path"][0].write_bytes(table["path"][0].read_bytes()[:-10])
    np.save(table["path"][1], np.full((140, 5), np.nan, np.float32))
    (corpus.root / "multitask_dataset" / "train_labels.txt").write_text("Id\tno\n")
    assert cli.main(["data", "check", "--data", str(corpus.root)]) == 1
    said = capsys.readouterr().out
    assert "3 problems" in said and table["path"][0].name in said and "NaN" in said and "line 1" in said


def test_a_missing_corpus_is_a_sentence(tmp_path, capsys):
    assert cli.main(["data", "check", "--data", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err
