"""Make a corpus of your own music.   python -m scripts.extract MUSIC OUT

MUSIC holds a folder for each genre, with audio files in it and below. Or --table names a table of
its files: columns path, and genre or valence, energy, danceability (0 to 1) or both; group (files
that belong together) and split (train, test) are optional. data/README.md has examples.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import sys
import unicodedata
from pathlib import Path

import pandas as pd

from labhelpers.audio import AudioError, extract, printable
from labhelpers.corpus import AFFECT, FOLDERS, Corpus, CorpusError
from labhelpers.sample import array_places, in_processes, write_arrays, write_labels

TEST_SHARE = 0.2  # of each genre's groups, where the table names no split
LEAST_GROUPS = 3  # of a genre: for training, validation and test
RECORD = "extract.json"  # marks a corpus made here; `Corpus.sound` reads it
RESULT = ["id", "digest", "problem"]  # of a file
TASKS = {"genre": "genre", "affect": "valence"}  # task -> the column that has its label


class ExtractError(ValueError):
    """No corpus can be made; the message says why and what to do."""


def make_corpus(music, out, table=None, jobs: int = -1, seconds: float = 30) -> pd.DataFrame:
    """Extract the files of a folder of music; prints what was found and what lies where.

    table : a table of the files; None = the folders of MUSIC are the genres
    seconds : of a longer file, the middle that is used
    A clip whose arrays are there is not extracted again, unless its file or `seconds` changed.
    Returns columns id, source, path, genre, the axes of affect, group, split. Raises ExtractError.
    """
    music, out = Path(music).resolve(), Path(out).resolve()
    if not music.is_dir():
        raise ExtractError(f"{printable(music)}: no such folder; check the name")
    there = any((out / folder).exists() for folder in FOLDERS.values())
    if there and not (out / RECORD).exists():
        raise ExtractError(f"{printable(out)}: a corpus not made here; name another folder")
    clips = read_table(Path(table), music) if table else list_files(music, out)
    clips["id"] = clip_ids(clips["source"], music)
    gather(out, seconds)
    todo = [(out, c.id, c.source, tasks_of(c), seconds) for c in clips.itertuples()]
    results = pd.DataFrame(in_processes(extract_file, todo, jobs), columns=RESULT)
    clips = clips.merge(results, on="id")
    problems = clips["problem"].dropna()
    for problem in problems:
        print("Left out:", problem)
    clips = clips.drop(problems.index).reset_index(drop=True)
    if clips.empty:
        raise ExtractError(f"none of {len(problems)} files can be used")
    clips["group"] = join_twins(clips)
    clips["split"] = split_of(clips)
    distribute(clips, out)
    write_mapping(clips, out)
    clips["path"] = clips["source"].map(one_line)
    write_labels(out, clips)
    print_summary(clips, out, len(problems))
    return clips


# --- which files ----------------------------------------------------------------------------------


def list_files(music: Path, out: Path) -> pd.DataFrame:
    """Columns source, genre, group … of the files in MUSIC, whose folders are the genres.

    Files in one folder below the genre are a group.
    """
    rows = []
    for path in sorted(path for top in music.iterdir() for path in (top, *top.rglob("*"))):
        parts = [printable(part) for part in path.relative_to(music).parts]
        if not (path.is_dir() or out in path.parents or any(part[0] == "." for part in parts)):
            genre = one_line(parts[0]) if len(parts) > 1 else None
            group = one_line("/".join(parts[:2])) if len(parts) > 2 else None
            rows.append((path, genre, group))
    clips = pd.DataFrame(rows, columns=["source", "genre", "group"], dtype=object)
    if all(genre.isdecimal() for genre in clips["genre"].dropna()):
        raise ExtractError(
            f"{printable(music)}: no folders of genres in it; make one for each genre, or name a "
            "table of the files, --table FILE (data/README.md makes one from the FMA's tracks.csv)"
        )
    groups = clips["group"].fillna(clips["source"].map(str))
    few = groups.groupby(clips["genre"]).transform("nunique") < LEAST_GROUPS
    if (few & clips["group"].notna()).any():
        genres = ", ".join(clips["genre"][few].unique())
        print(f"{genres}: too few folders to split; each file counts alone")
    clips["group"] = clips["group"].mask(few, None)
    return clips.assign(split=None, **dict.fromkeys(AFFECT))


def read_table(file: Path, music: Path) -> pd.DataFrame:
    """Columns source, genre, the axes of affect, group, split of the files that a table names."""
    try:
        header = file.read_text(encoding="utf-8-sig").partition("\n")[0]
        kind = {"sep": max("\t;,", key=header.count), "encoding": "utf-8-sig", "dtype": str}
        table = pd.read_csv(file, keep_default_na=False, **kind)
    except (OSError, ValueError) as error:
        raise ExtractError(f"{file}: not a table in UTF-8 ({error}); save it as CSV") from None
    table.columns = table.columns.str.strip().str.lower()
    if table.empty or "path" not in table or not {"genre", *AFFECT} & set(table):
        raise ExtractError(f"{file}: needs rows, a column path, and genre or {', '.join(AFFECT)}")
    table = table.reindex(columns=["path", "genre", *AFFECT, "group", "split"], fill_value="")
    table = table.apply(lambda column: column.str.strip()).replace("", None)
    affect = table[list(AFFECT)].apply(pd.to_numeric, errors="coerce")
    given = table[list(AFFECT)].notna().any(axis=1)
    wrong_affect = given & ~((affect >= 0) & (affect <= 1)).all(axis=1)
    wrong_split = table["split"].notna().any() & ~table["split"].isin(["train", "test"])
    for problem, rows in {
        "path is empty or listed twice": table["path"].isna() | table["path"].duplicated(),
        "affect must be three numbers from 0 to 1": wrong_affect,
        "split must be train or test, in all rows or none": wrong_split,
    }.items():
        if rows.any():
            first = rows.idxmax()
            raise ExtractError(f"{file}, row {first + 1} ({table['path'][first]}): {problem}")
    table[list(AFFECT)] = affect
    for column in ("genre", "group"):
        table[column] = table[column].map(one_line, na_action="ignore")
    return table.assign(source=[music / path for path in table["path"]])


def one_line(text) -> str:
    return " ".join(printable(text).split())


def clip_ids(sources: pd.Series, music: Path) -> pd.Series:
    """An id for each file: its name's letters and digits, whatever the script, and - and _.

    Names that are the same, also but for case, get a digest of the path.
    """
    stems = sources.map(lambda path: unicodedata.normalize("NFC", path.stem))
    ids = stems.str.replace(r"[^\w-]+", "-", regex=True).str.strip("-").str[:80].replace("", "clip")
    paths = sources.map(lambda path: os.fsencode(os.path.relpath(path, music)))
    ends = paths.map(lambda path: "-" + hashlib.sha1(path).hexdigest()[:8])
    return ids + ends.where(ids.str.casefold().duplicated(keep=False), "")


# --- the arrays -----------------------------------------------------------------------------------


def tasks_of(clip) -> list[str]:
    """The tasks that a row of the table has labels for."""
    return [name for name, label in TASKS.items() if pd.notna(getattr(clip, label))]


def gather(out: Path, seconds: float) -> None:
    """Make a corpus of an earlier call ready for this one: its arrays in train, no label files."""
    out.mkdir(parents=True, exist_ok=True)
    (out / RECORD).write_text(json.dumps({"seconds": seconds}))
    for path in out.glob("*/*_labels.txt"):
        path.unlink()
    for path in out.glob("*/test/*.npy"):
        path.replace(path.parents[1] / "train" / path.name)


def extract_file(out: Path, clip: str, source: Path, tasks: list[str], seconds: float):
    """Write the arrays of one file, unless they are there. Returns id, digest, problem.

    An array is dated `seconds` after its file: so it is known to be whole, and made of that much.
    """
    if not tasks:
        return clip, None, f"{printable(source)}: it lies in no folder of a genre; move it to one"
    paths = [path for path, _ in array_places(out, clip, "train", tasks)]
    try:
        time = source.stat().st_mtime_ns + int(seconds * 1e9)
        if not all(path.is_file() and path.stat().st_mtime_ns == time for path in paths):
            write_arrays(out, clip, "train", tasks, extract(source, seconds=seconds))
            for path in paths:
                os.utime(path, ns=(time, time))
        return clip, hashlib.sha1(paths[0].read_bytes()).hexdigest(), None
    except AudioError as error:
        return clip, None, str(error)
    except Exception as error:  # whatever one file does, the others go on
        return clip, None, f"{printable(source)}: {type(error).__name__}: {error}; leave it out"


def distribute(clips: pd.DataFrame, out: Path) -> None:
    """Move the arrays of test clips to the test folders; remove those of files that went."""
    splits = {}
    for clip in clips.itertuples():
        for path, _ in array_places(out, clip.id, "train", tasks_of(clip)):
            splits[path] = path.parents[1] / clip.split
    for path in out.glob("*/train/*.npy"):
        if path in splits:
            splits[path].mkdir(exist_ok=True)
            path.replace(splits[path] / path.name)
        else:
            path.unlink()


def write_mapping(clips: pd.DataFrame, out: Path) -> None:
    """Write class_mapping.json: each genre is a class, unless the file says something else."""
    path = out / "class_mapping.json"
    earlier = Corpus(out).mapping if path.is_file() else {}
    genres = sorted(clips["genre"].dropna().unique())
    mapping = {genre: earlier.get(genre, genre) for genre in genres}
    path.write_text(json.dumps(mapping, indent=1, ensure_ascii=False), encoding="utf-8")


# --- groups and splits ----------------------------------------------------------------------------


def join_twins(clips: pd.DataFrame) -> pd.Series:
    """The group of each clip; identical recordings are of one group."""
    groups = clips["group"].fillna(clips["id"])
    for _, twins in clips.groupby("digest"):
        if len(twins) > 1:
            names = set(groups[twins.index])
            groups = groups.mask(groups.isin(names), min(names))
            files = " = ".join(map(printable, twins["source"]))
            print(f"The same recording, kept in one split: {files}")
    return groups


def split_of(clips: pd.DataFrame) -> pd.Series:
    """The given split; else a fifth of each genre's groups is for testing, and never all.

    The choice follows from the groups' names, so that more files change little.
    """
    if clips["split"].notna().any():
        both = clips.groupby("group")["split"].transform("nunique") > 1
        if both.any():
            print(f"{both.sum()} files are of groups that lie in both splits; they train now")
        return clips["split"].mask(both, "train")
    owners = clips.drop_duplicates("group")
    test: set[str] = set()
    for _, groups in owners["group"].groupby(owners["genre"].fillna("")):
        order = sorted(groups, key=lambda name: hashlib.sha1(name.encode()).hexdigest())
        test.update(order[: max(1, round(TEST_SHARE * len(order)))] if len(order) > 1 else [])
    return clips["group"].isin(test).map({True: "test", False: "train"})


def print_summary(clips: pd.DataFrame, out: Path, failures: int) -> None:
    counts = pd.crosstab(clips["genre"].fillna("(affect alone)"), clips["split"])
    print(counts.rename_axis(index=None, columns=None).to_string())
    affect = clips["valence"].notna().sum()
    print(f"{len(clips)} clips, {affect} of them with affect labels. Files left out: {failures}")
    name, python = printable(out), os.path.relpath(sys.executable)
    print(f"The corpus is {name}; class_mapping.json in it merges and drops genres. Next:")
    print(f"  {python} -m scripts.report --data {shlex.quote(name)}")


if __name__ == "__main__":
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("music", help="folder of music")
    parser.add_argument("out", help="folder of the corpus")
    parser.add_argument("--table", help="table of the files (CSV or TSV)")
    parser.add_argument("--jobs", type=int, default=-1, help="processes; -1 = one per core")
    parser.add_argument("--seconds", type=float, default=30, help="middle of a file that is used")
    arguments = parser.parse_args()
    if arguments.jobs == 0 or not arguments.seconds > 0:
        parser.error("--jobs must not be 0, --seconds must be above 0")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal may lack letters of a file's name
    try:
        make_corpus(**vars(arguments))
    except (ExtractError, CorpusError, OSError) as error:
        sys.exit(str(error))
