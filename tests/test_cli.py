"""The command line: what it hands on, and what a user sees when something is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from labhelpers.corpora.layout import CorpusError
from labhelpers.records import RunError
from labhelpers.series import cli
from labhelpers.series import extract as features
from labhelpers.series import run as report


@pytest.fixture
def run_series(monkeypatch, tmp_path):
    """Stands in for the runner; keeps what it was called with."""
    calls = []

    def fake(*args, **options):
        calls.append((args, options))
        return tmp_path / "index.html"

    monkeypatch.setattr(report, "run_series", fake)
    monkeypatch.setattr(report, "rewrite_report", fake)
    return calls


def test_report_hands_its_options_on(run_series, capsys, tmp_path):
    line = "report --data d --out o --only 0,1 --from 0 -p EPOCHS 5 -p DEVICE cpu --fresh --code"
    assert cli.main([*line.split(), "--author", "Maria E.", "--course", "PR"]) == 0
    ((data, out), options) = run_series[0]
    assert (str(data), str(out)) == ("d", "o")
    assert options == {
        "only": "0,1",
        "start": "0",
        "parameters": {"EPOCHS": "5", "DEVICE": "cpu"},
        "fresh": True,
        "code": True,
        "author": "Maria E.",
        "course": "PR",
    }
    assert capsys.readouterr().out == f"file://{tmp_path}/index.html\n"


def test_the_sample_can_be_named(run_series):
    cli.main(["report", "--data", "sample"])
    assert run_series[0][0][0] == "sample"  # not a path: no folder need be called so


def test_pages_need_a_folder_only(run_series, capsys):
    assert cli.main(["pages", "o", "--author", "M"]) == 0
    ((out,), options) = run_series[0]
    assert str(out) == "o" and options == {"author": "M", "course": "", "code": False}


def test_help_comes_at_once_and_has_examples():
    """Nothing that takes long to import is needed for it."""
    call = "import atexit, sys; atexit.register(lambda: print(*sys.modules)); "
    call += "from labhelpers.series.cli import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True)
    assert "labhelpers report --data DIR --only 5,6" in done.stdout
    assert not {"numpy", "torch", "pandas", "librosa", "papermill"} & set(done.stdout.split())
    assert "labhelpers.series.cli" in done.stdout.split()


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out.startswith("labhelpers 1.")


@pytest.mark.parametrize("line, meant", [("reprot", "report"), ("data chek", "check")])
def test_a_mistyped_command_is_guessed(line, meant, capsys):
    with pytest.raises(SystemExit):
        cli.main(line.split())
    assert f"did you mean {meant}?" in capsys.readouterr().err


def test_a_reader_that_has_enough_is_no_error(tmp_path):
    script = tmp_path / "many.py"
    script.write_text(
        "from labhelpers.series import cli\n"
        "cli._check = lambda args: [print(i) for i in range(100_000)] and 0\n"
        "raise SystemExit(cli.main(['data', 'check']))\n"
    )
    call = f"{sys.executable} {script} | head -1"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(call, shell=True, capture_output=True, text=True, env=env)
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.parametrize(
    "error",
    [
        CorpusError("a.txt, line 3: wrong"),
        RunError("run 05 first"),
        OSError(28, "No space left", "x.npy"),
    ],
)
def test_known_errors_are_one_sentence(monkeypatch, capsys, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(report, "run_series", fail)
    assert cli.main(["report"]) == 1
    said = capsys.readouterr().err
    assert (
        said.startswith("labhelpers: ")
        and said.count("\n") == 1
        and "Traceback" not in said
        and "Errno" not in said
    )


def test_faults_of_ours_keep_their_trace_and_ctrl_c_is_130(monkeypatch, capsys):
    def fail(*_, **__):
        raise raised

    monkeypatch.setattr(report, "run_series", fail)
    raised = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        cli.main(["report"])
    raised = KeyboardInterrupt()
    assert cli.main(["report"]) == 130 and "Stopped" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line", ["", "report --from", "report -p EPOCHS", "bench speed", "data", "kaggle", "predict"]
)
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
    assert (
        "3 problems" in said
        and table["path"][0].name in said
        and "NaN" in said
        and "line 1" in said
    )


def test_a_missing_corpus_is_a_sentence(tmp_path, capsys):
    assert cli.main(["data", "check", "--data", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err
