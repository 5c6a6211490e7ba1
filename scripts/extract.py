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
import re
import shlex
import sys
import unicodedata
from pathlib import Path

import pandas as pd

from labhelpers.audio import AudioError, extract, printable
from labhelpers.corpus import AFFECT, FOLDERS, Corpus
from labhelpers.sample import array_places, in_processes, write_arrays, write_labels

TEST_SHARE = 0.2  # of each genre's groups, where the table names no split
LEAST_GROUPS = 3  # of a genre: for training, validation and test
RECORD = "extract.json"  # marks a corpus made here
SUFFIX = ".fused.full.npy"
TASKS = {"genre": "genre", "affect": "valence"}  # task -> the column that has its label
HELP = argparse.RawDescriptionHelpFormatter


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
        raise ExtractError(
            f"{printable(out)}: a corpus that was not made here; name another folder"
        )
    clips = own_table(Path(table), music) if table else folder_table(music, out)
    clips["id"] = clip_ids(clips["source"], music)
    same = gather(out, seconds)
    todo = [(out, c.id, c.source, tasks_of(c), seconds, same) for c in clips.itertuples()]
    results = sorted(in_processes(extract_file, todo, jobs))
    failures = [reason for _, _, reason in results if reason]
    for reason in failures:
        print("Left out:", reason)
    digests = {clip: digest for clip, digest, _ in results if digest}
    if not digests:
        raise ExtractError(f"none of {len(clips)} files can be used")
    clips = clips[clips["id"].isin(digests)].reset_index(drop=True)
    clips["group"] = join_twins(clips, digests)
    clips["split"] = split_of(clips)
    distribute(clips, out)
    earlier = Corpus(out).mapping if (out / "class_mapping.json").is_file() else {}
    genres = sorted(clips["genre"].dropna().unique())
    mapping = {genre: earlier.get(genre, genre) for genre in genres}
    text = json.dumps(mapping, indent=1, ensure_ascii=False)
    (out / "class_mapping.json").write_text(text, encoding="utf-8")
    clips["path"] = clips["source"].map(lambda path: re.sub(r"[\t\r\n]", " ", printable(path)))
    write_labels(out, clips)
    print_summary(clips, out, len(failures))
    return clips


# --- which files ----------------------------------------------------------------------------------


def folder_table(music: Path, out: Path) -> pd.DataFrame:
    """Columns source, genre, group of the files in the folders of MUSIC, which are the genres.

    Files in one folder below the genre are a group.
    """
    folders = sorted(path for path in music.iterdir() if path.is_dir() and path.name[0] != ".")
    folders = [folder for folder in folders if folder != out]
    if folders and all(folder.name.isdecimal() for folder in folders):
        raise ExtractError(
            f"{printable(music)}: its folders are numbers, not genres; name a table of the files, "
            "--table FILE (data/README.md makes one from the FMA's tracks.csv)"
        )
    if not folders:
        raise ExtractError(
            f"{printable(music)}: no folders in it; make one folder for each genre, or name a "
            "table of the files, --table FILE"
        )
    rows = [(path, None, None) for path in files_in(music, "*", out)]
    for folder in folders:
        for path in files_in(folder, "**/*", out):
            parts = path.relative_to(folder).parts
            group = one_line(f"{folder.name}/{parts[0]}") if len(parts) > 1 else None
            rows.append((path, one_line(folder.name), group))
    clips = pd.DataFrame(rows, columns=["source", "genre", "group"], dtype=object)
    for genre, part in clips.groupby("genre"):
        groups = part["group"].fillna(part["source"].map(str)).nunique()
        if groups < LEAST_GROUPS <= len(part):
            clips.loc[part.index, "group"] = None
            print(
                f"{genre}: its files lie in {groups} folders, too few to split; each counts alone"
            )
    return clips.assign(split=None, **dict.fromkeys(AFFECT))


def files_in(folder: Path, pattern: str, out: Path) -> list[Path]:
    """The files of a folder, without hidden ones and what lies in `out`."""
    paths = []
    for path in sorted(folder.glob(pattern)):
        hidden = any(part[0] == "." for part in path.relative_to(folder).parts)
        if not (hidden or path.is_dir() or out in path.parents):
            paths.append(path)
    return paths


def own_table(file: Path, music: Path) -> pd.DataFrame:
    """Columns source, genre, the axes of affect, group, split of the files that a table names."""
    try:
        header = file.read_text(encoding="utf-8-sig").partition("\n")[0]
        separator = max("\t;,", key=header.count)
        table = pd.read_csv(
            file, sep=separator, dtype=str, encoding="utf-8-sig", keep_default_na=False
        )
    except (OSError, ValueError) as error:
        raise ExtractError(f"{file}: not a table in UTF-8 ({error}); save it as CSV") from None
    table.columns = table.columns.str.strip().str.lower()
    table = table.apply(lambda column: column.str.strip()).replace("", None)
    if "path" not in table or not {"genre", *AFFECT} & set(table):
        raise ExtractError(f"{file}: needs a column path, and genre or {', '.join(AFFECT)}")
    table = table.dropna(how="all").reset_index(drop=True)
    table = table.reindex(columns=["path", "genre", *AFFECT, "group", "split"]).astype(object)
    affect = table[list(AFFECT)].apply(pd.to_numeric, errors="coerce")
    given = table[list(AFFECT)].notna().any(axis=1)
    valid = ((affect >= 0) & (affect <= 1)).all(axis=1)
    splits = table["split"].isin(["train", "test"])
    for problem, rows in {
        "a file without a path": table["path"].isna(),
        "a file that is listed twice": table["path"].duplicated(),
        f"{', '.join(AFFECT)} must be numbers from 0 to 1": given & ~valid,
        "neither a genre nor affect": table["genre"].isna() & ~given,
        "split must be train or test, in all rows or none": ~splits & table["split"].notna().any(),
    }.items():
        if rows.any():
            first = rows.idxmax()
            raise ExtractError(f"{file}, row {first + 1} ({table['path'][first]}): {problem}")
    if table.empty:
        raise ExtractError(f"{file}: no rows; list the audio files")
    for column in ("genre", "group"):
        table[column] = table[column].map(one_line, na_action="ignore")
    table[list(AFFECT)] = affect
    return table.assign(source=[music / path for path in table.pop("path")])


def one_line(text: str) -> str:
    return " ".join(printable(text).split())


def clip_ids(sources: pd.Series, music: Path) -> list[str]:
    """An id for each file: its name's letters and digits, whatever the script, and - and _.

    Names that are the same, also but for case, get a digest of the path.
    """
    ids, paths = [], []
    for source in sources:
        stem = unicodedata.normalize("NFC", source.stem)
        ids.append(re.sub(r"[^\w-]+", "-", stem).strip("-")[:80] or "clip")
        paths.append(os.fsencode(os.path.relpath(source, music)))
    common = pd.Series(ids).str.casefold().duplicated(keep=False)
    hashes = [hashlib.sha1(path).hexdigest()[:8] for path in paths]
    return [f"{name}-{end}" if twice else name for name, end, twice in zip(ids, hashes, common)]


# --- the arrays -----------------------------------------------------------------------------------


def tasks_of(clip) -> list[str]:
    """The tasks that a row of the table has labels for."""
    return [name for name, label in TASKS.items() if pd.notna(getattr(clip, label))]


def gather(out: Path, seconds: float) -> bool:
    """Make a corpus of an earlier call ready for this one: its arrays in train, no label files.

    Returns whether those arrays can be used again.
    """
    out.mkdir(parents=True, exist_ok=True)
    for folder in FOLDERS.values():
        for path in (out / folder).glob("*.txt"):
            path.unlink()
        for path in (out / folder / "test").glob("*" + SUFFIX):
            (out / folder / "train").mkdir(exist_ok=True)
            path.replace(out / folder / "train" / path.name)
    record = json.dumps({"seconds": seconds})
    same = (out / RECORD).is_file() and (out / RECORD).read_text() == record
    (out / RECORD).write_text(record)
    return same


def extract_file(out: Path, clip: str, source: Path, tasks: list[str], seconds: float, same: bool):
    """Write the arrays of one file, unless they are there. Returns id, digest, error message.

    An array has its file's modification time: so it is known to be whole, and of that file.
    """
    if not tasks:
        return clip, None, f"{printable(source)}: it lies in no folder of a genre; move it to one"
    places = [path for path, _ in array_places(out, clip, "train", tasks)]
    files = [source, *places]
    try:
        whole = same and all(path.is_file() for path in files)
        if not whole or len({path.stat().st_mtime_ns for path in files}) > 1:
            arrays = extract(source, seconds=seconds)
            write_arrays(out, clip, "train", tasks, arrays)
            time = source.stat().st_mtime_ns
            for path in places:
                os.utime(path, ns=(time, time))
        return clip, hashlib.sha1(places[0].read_bytes()).hexdigest(), None
    except AudioError as error:
        return clip, None, str(error)
    except Exception as error:  # whatever one file does, the others go on
        return clip, None, f"{printable(source)}: {type(error).__name__}: {error}; leave it out"


def distribute(clips: pd.DataFrame, out: Path) -> None:
    """Move the arrays of test clips to the test folders; remove those of files that went."""
    splits = {}
    for clip in clips.itertuples():
        for path, _ in array_places(out, clip.id, "train", tasks_of(clip)):
            splits[path] = clip.split
    for folder in FOLDERS.values():
        for path in (out / folder / "train").glob("*" + SUFFIX):
            if path not in splits:
                path.unlink()
            elif splits[path] == "test":
                (out / folder / "test").mkdir(exist_ok=True)
                path.replace(out / folder / "test" / path.name)


# --- groups and splits ----------------------------------------------------------------------------


def join_twins(clips: pd.DataFrame, digests: dict[str, str]) -> pd.Series:
    """The group of each clip; identical recordings are of one group."""
    groups = clips["group"].fillna(clips["id"])
    for _, twins in clips.groupby(clips["id"].map(digests)):
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
    genres = clips["genre"].fillna("").groupby(clips["group"]).first()
    order = [int(hashlib.sha1(name.encode()).hexdigest()[:12], 16) for name in genres.index]
    rank = pd.Series(order, genres.index).groupby(genres).rank()
    size = genres.groupby(genres).transform("size")
    count = (TEST_SHARE * size).round().mask(size > 1, lambda n: n.clip(lower=1))
    return clips["group"].map(rank <= count).map({True: "test", False: "train"})


def print_summary(clips: pd.DataFrame, out: Path, failures: int) -> None:
    counts = pd.crosstab(clips["genre"].fillna("(affect alone)"), clips["split"])
    print(counts.rename_axis(index=None, columns=None).to_string())
    affect = clips["valence"].notna().sum()
    print(f"{len(clips)} clips, {affect} of them with affect labels. Files left out: {failures}")
    name = printable(out)
    print(f"The corpus is {name}; its class_mapping.json can merge or drop genres. Next:")
    python = os.path.relpath(sys.executable)
    print(f"  {shlex.join([python, '-m', 'scripts.report', '--data', name])}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HELP)
    parser.add_argument("music", help="folder of music")
    parser.add_argument("out", help="folder of the corpus")
    parser.add_argument("--table", "--labels", help="table of the files (CSV or TSV)")
    parser.add_argument("--jobs", type=int, default=-1, help="processes; -1 = one per core")
    parser.add_argument("--seconds", type=float, default=30, help="middle of a file that is used")
    arguments = parser.parse_args()
    if arguments.jobs == 0 or not arguments.seconds > 0:
        parser.error("--jobs must not be 0, --seconds must be above 0")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal may lack letters of a file's name
    try:
        make_corpus(**vars(arguments))
    except (ValueError, OSError) as error:
        sys.exit(str(error))
