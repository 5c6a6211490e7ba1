"""The command `labhelpers`: each sub-command calls one function of the package."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for an error told in a sentence, 130 after Ctrl-C."""
    args = parser().parse_args(argv)
    warnings.formatwarning = lambda message, *_, **__: f"labhelpers: {message}\n"
    try:
        return args.call(args) or 0
    except KeyboardInterrupt:
        print("\nStopped. What is done is kept; the same command goes on from there.", file=sys.stderr)
        return 130
    except Exception as error:
        if not _is_told(error):
            raise
        said = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
        print(f"labhelpers: {said}", file=sys.stderr)
        return 1


def _is_told(error: Exception) -> bool:
    """Whether the error's message is a sentence for the user; anything else is a fault of ours and keeps its trace."""
    from ..audio import AudioError
    from ..corpora.layout import CorpusError
    from ..records import RunError

    return isinstance(error, (CorpusError, AudioError, RunError, OSError))


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(prog="labhelpers", description="Music genre and affect from spectrograms.")
    commands = top.add_subparsers(required=True, metavar="command")
    for add in (_add_data, _add_extract, _add_report, _add_predict, _add_kaggle):
        add(commands)
    return top


def _command(commands, name: str, call, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(call=call)
    return command


# --- data and extract -------------------------------------------------------------------------------------------------


def _add_data(commands):
    what = commands.add_parser("data", help="build the sample corpus, or check a corpus").add_subparsers(required=True)
    sample = _command(what, "sample", _sample, "Build the sample corpus of synthesised music (about two minutes).")
    sample.add_argument("--out", type=Path, help="its folder (default: data/sample)")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--jobs", type=int, default=-1, help="processes (default: one a core)")
    check = _command(what, "check", _check, "Read every label file and array of a corpus, and say what is wrong.")
    check.add_argument("--data", type=Path, help="the corpus (default: as the notebooks find it)")


def _sample(args):
    from ..corpora.sample import make_sample
    from ..files import project_root

    print(make_sample(args.out or project_root() / "data" / "sample", seed=args.seed, jobs=args.jobs))


def _check(args):
    from ..corpora.find import find_corpus

    corpus, read, wrong = find_corpus(args.data), 0, 0
    print(corpus.describe().to_string(index=False, float_format="%.1f"))
    for _, problem in corpus.check():
        read += 1
        if problem:
            wrong += 1
            print(problem)
    print(f"{read} files read, {wrong} problems")
    return int(wrong > 0)


def _add_extract(commands):
    extract = _command(commands, "extract", _extract, "Turn a folder of audio into a corpus in the lab's layout.")
    extract.add_argument("audio", type=Path, help="folder of audio, one subfolder a genre (or see --labels)")
    extract.add_argument("out", type=Path, help="the corpus to write; a second call does only what is missing")
    extract.add_argument("--labels", type=Path, help="file of names with genre, affect and, where known, group")
    extract.add_argument("--jobs", type=int, default=-1, help="processes (default: one a core)")
    extract.add_argument("--dask", metavar="URL", help="run on the Dask cluster at this address (tcp://…)")
    extract.add_argument("--seconds", type=float, default=30, help="longest part taken of each file (default: 30)")
    extract.add_argument("--strict", action="store_true", help="exit with 1 when a file could not be read")


def _extract(args):
    from ..corpora.extract import extract_folder

    options = {"labels": args.labels, "jobs": args.jobs, "dask": args.dask, "seconds": args.seconds}
    summary = extract_folder(args.audio, args.out, **options)
    print(summary)
    return int(args.strict and bool(summary.failed))


# --- report and predict -----------------------------------------------------------------------------------------------


def _add_report(commands):
    report = _command(commands, "report", _report, "Run the notebooks that changed and write the report.")
    report.add_argument("--data", type=Path, help="the corpus (default: as the notebooks find it)")
    report.add_argument("--out", type=Path, help="where the report goes (default: reports/<corpus>)")
    report.add_argument("--only", metavar="00,01", help="run these notebooks only")
    report.add_argument("--from", dest="start", metavar="05", help="run this notebook and the later ones")
    report.add_argument("-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                        help="set a notebook parameter, as in -p EPOCHS 5; may be repeated")  # fmt: skip
    report.add_argument("--fresh", action="store_true", help="run unchanged notebooks too")
    report.add_argument("--code", action="store_true", help="keep the notebooks' code in the PDF")


def _report(args):
    from .run import run_series

    options = {"only": args.only, "start": args.start, "fresh": args.fresh, "code": args.code}
    print(run_series(args.data, args.out, parameters=dict(args.parameters), **options))


def _add_predict(commands):
    predict = _command(commands, "predict", _predict, "Genre and affect of audio files, by the trained models.")
    predict.add_argument("files", nargs="+", type=Path, metavar="FILE", help="audio files")
    predict.add_argument("--run", type=Path, help="report folder with the models (default: the last one)")
    predict.add_argument("--json", action="store_true", help="print JSON")


def _predict(args):
    from .predict import predict_files

    return predict_files(args.files, args.run, as_json=args.json)


# --- kaggle and bench -------------------------------------------------------------------------------------------------


def _add_kaggle(commands):
    what = commands.add_parser("kaggle", help="bundle the series for Kaggle, or write a submission")
    what = what.add_subparsers(required=True)
    bundle = _command(what, "bundle", _bundle, "Write the folder that `kaggle` pushes: notebooks and helpers.")
    bundle.add_argument("out", type=Path, nargs="?", default=Path("kaggle_bundle"))
    bundle.add_argument("--user", required=True, help="your Kaggle user name")
    bundle.add_argument("--data", metavar="OWNER/SLUG", help="data set to attach (default: the lab's)")
    bundle.add_argument("--with-pages", action="store_true", help="bring what makes pages and PDF there")
    submission = _command(what, "submission", _submission, "Write the submission file of step 10 from its record.")
    submission.add_argument("--data", type=Path, help="the corpus (default: as the notebooks find it)")
    submission.add_argument("--out", type=Path, help="the report folder with the record (default: reports/<corpus>)")
    submission.add_argument("--header", choices=("full", "id"), default="full", help="the contest's form of names")


def _bundle(args):
    from .kaggle import bundle

    print(bundle(args.out, args.user, args.data, args.with_pages))


def _submission(args):
    from ..corpora.find import find_corpus
    from ..records import submission

    print(submission(find_corpus(args.data), args.out, args.header))


if __name__ == "__main__":
    sys.exit(main())
