"""The command `labhelpers`: each sub-command calls one function of the package.

Modules are imported where they are called: `labhelpers --help` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

EXAMPLES = """examples:
  labhelpers report                          the whole series, on the corpus found or the sample
  labhelpers report --data DIR --only 5,6    two of the notebooks, on another corpus
  labhelpers report --from 7 -p EPOCHS 20    with another value in the cell of parameters
  labhelpers extract MUSIC corpora/mine      a folder of music becomes a corpus
  labhelpers predict SONG.mp3                genre and affect, by the models of the last report
  labhelpers pages reports/sample            the pages again, from what a run left (as on Kaggle)
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns 0, 1 for an error told in a sentence, or 130 after Ctrl-C."""
    args = parser().parse_args(argv)
    log_to_stdout()
    warnings.formatwarning = lambda message, *_, **__: f"labhelpers: {message}\n"
    try:
        return args.call(args) or 0
    except KeyboardInterrupt:
        print("\nStopped. What is done is kept; the same command goes on there.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `… | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not _is_told(error):
            raise
        said = error
        if isinstance(error, OSError) and error.filename:
            said = f"{error.filename}: {error.strerror}"
        print(f"labhelpers: {said}", file=sys.stderr)
        return 1


def log_to_stdout() -> None:
    """What the package logs is for the reader: plain lines."""

    class Lines(logging.StreamHandler):
        """Writes to what is stdout at the time; on a terminal over the ticking line."""

        def emit(self, record):
            before = "\r\033[K" if sys.stdout.isatty() else ""
            print(before + self.format(record), flush=True)

    log = logging.getLogger("labhelpers")
    log.setLevel(logging.INFO)
    log.handlers = [Lines()]


def _is_told(error: Exception) -> bool:
    """Whether the message is a sentence for the user; a fault of ours keeps its trace."""
    from ..audio import AudioError
    from ..corpora.layout import CorpusError
    from ..records import RunError

    return isinstance(error, (CorpusError, AudioError, RunError, OSError))


class _Parser(argparse.ArgumentParser):
    """Says which command may have been meant."""

    def _check_value(self, action, value):
        if action.choices is not None and value not in action.choices:
            meant = difflib.get_close_matches(str(value), list(action.choices), 1)
            hint = f"; did you mean {meant[0]}?" if meant else "."
            known = ", ".join(map(str, action.choices))
            raise argparse.ArgumentError(action, f"no {value!r}{hint} There are: {known}")


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    raw = argparse.RawDescriptionHelpFormatter
    about = "Music genre and affect from spectrograms."
    top = _Parser(prog="labhelpers", description=about, epilog=EXAMPLES, formatter_class=raw)
    top.add_argument("--version", action="version", version=f"labhelpers {version('labhelpers')}")
    commands = top.add_subparsers(required=True, metavar="command", parser_class=_Parser)
    for add in (_add_data, _add_extract, _add_report, _add_pages, _add_predict, _add_kaggle):
        add(commands)
    return top


def _command(commands, name: str, call, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(call=call)
    return command


def _several(commands, name: str, text: str):
    """A command that has commands of its own."""
    command = commands.add_parser(name, help=text, description=text)
    return command.add_subparsers(required=True, metavar="what", parser_class=_Parser)


DATA = "the corpus (default: as the notebooks find it)"
JOBS = "processes (default: one a core)"


# --- data and extract -----------------------------------------------------------------------------


def _add_data(commands):
    what = _several(commands, "data", "Build the sample corpus, or check a corpus.")
    sample = _command(what, "sample", _sample, "Build the sample corpus of synthesised music.")
    sample.add_argument("--out", type=Path, help="its folder (default: data/sample)")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--jobs", type=int, default=-1, help=JOBS)
    about = "Read every label file and array of a corpus, and say what is wrong."
    check = _command(what, "check", _check, about)
    check.add_argument("--data", help=DATA)


def _sample(args):
    from ..corpora.sample import make_sample
    from ..files import project_root

    folder = args.out or project_root() / "data" / "sample"
    print(make_sample(folder, seed=args.seed, jobs=args.jobs))


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
    about = "Turn a folder of audio into a corpus in the lab's layout."
    extract = _command(commands, "extract", _extract, about)
    add = extract.add_argument
    add("audio", type=Path, help="folder of audio, one subfolder a genre (or see --labels)")
    add("out", type=Path, help="the corpus to write; a second call does only what is missing")
    add("--labels", type=Path, help="file of names with genre, affect and, where known, group")
    add("--jobs", type=int, default=-1, help=JOBS)
    add("--dask", metavar="URL", help="run on the Dask cluster at this address (tcp://…)")
    add("--seconds", type=_seconds, default=30, help="longest part taken of a file (default: 30)")
    add("--strict", action="store_true", help="exit with 1 when a file could not be read")


def _extract(args):
    from .extract import extract_folder

    options = {"labels": args.labels, "jobs": args.jobs, "dask": args.dask}
    summary = extract_folder(args.audio, args.out, seconds=args.seconds, **options)
    print(summary)
    return int(args.strict and bool(summary.failed))


# --- report, pages and predict --------------------------------------------------------------------


def _add_report(commands):
    about = "Run the notebooks that changed and write the report."
    report = _command(commands, "report", _report, about)
    add = report.add_argument
    add("--data", help=DATA)
    add("--out", type=Path, help="where the report goes (default: reports/<corpus>)")
    add("--only", metavar="5,6", help="run these notebooks only")
    add("--from", dest="start", metavar="5", help="run this notebook and the later ones")
    add(
        "-p",
        dest="parameters",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="set a notebook parameter, as in -p EPOCHS 5; may be repeated",
    )
    add("--fresh", action="store_true", help="run unchanged notebooks too")
    _add_hand_in(report)


def _add_hand_in(command):
    command.add_argument("--author", default="", help="your name, for the report")
    command.add_argument("--course", default="", help="what the report is handed in for")
    command.add_argument("--code", action="store_true", help="keep the code in the full PDF")


def _report(args):
    from .run import run_series

    index = run_series(
        args.data,
        args.out,
        only=args.only,
        start=args.start,
        parameters=dict(args.parameters),
        fresh=args.fresh,
        author=args.author,
        course=args.course,
        code=args.code,
    )
    print(Path(index).as_uri())


def _add_pages(commands):
    about = "Write the pages and PDFs again from what a run left; no corpus is needed."
    pages = _command(commands, "pages", _pages, about)
    pages.add_argument("out", type=Path, help="the report folder, with notebooks/ and records/")
    _add_hand_in(pages)


def _pages(args):
    from .run import rewrite_report

    index = rewrite_report(args.out, author=args.author, course=args.course, code=args.code)
    print(index.as_uri())


def _add_predict(commands):
    about = "Genre and affect of audio files, by the trained models."
    predict = _command(commands, "predict", _predict, about)
    about = "audio files, or folders of them"
    predict.add_argument("files", nargs="+", type=Path, metavar="FILE", help=about)
    predict.add_argument("--run", type=Path, help="report folder of the models (default: the last)")
    about = "the middle that is taken of a longer file (default: 30)"
    predict.add_argument("--seconds", type=_seconds, default=30, help=about)
    predict.add_argument("--jobs", type=_jobs, default=-1, help="processes (default: one a core)")
    predict.add_argument("--json", action="store_true", help="print JSON")


def _predict(args):
    from .predict import predict_files

    options = {"as_json": args.json, "seconds": args.seconds, "jobs": args.jobs}
    return predict_files(args.files, args.run, **options)


def _seconds(text: str) -> float:
    if not (value := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"{text}: a length above 0 is needed")
    return value


def _jobs(text: str) -> int:
    if not (value := int(text)):
        raise argparse.ArgumentTypeError("0: give a number of processes, or -1 for one a core")
    return value


# --- kaggle ---------------------------------------------------------------------------------------


def _add_kaggle(commands):
    what = _several(commands, "kaggle", "Bundle the series for Kaggle.")
    about = "Write the folder that `kaggle` pushes: notebooks and helpers."
    bundle = _command(what, "bundle", _bundle, about)
    bundle.add_argument("out", type=Path, nargs="?", default=Path("kaggle_bundle"))
    bundle.add_argument("--user", required=True, help="your Kaggle user name")
    bundle.add_argument("--data", metavar="OWNER/SLUG", help="data to attach (default: the lab's)")
    bundle.add_argument("--with-pages", action="store_true", help="bring what makes pages there")


def _bundle(args):
    from .kaggle import bundle

    print(bundle(args.out, args.user, args.data, args.with_pages))


if __name__ == "__main__":
    sys.exit(main())
