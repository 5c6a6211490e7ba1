"""Folders of music as people have them, read as one table of clips.

Known are one subfolder a genre (GTZAN's too), with or without artists and albums below it; the Free
Music Archive's numbered folders with its tracks.csv; and any folder with a table of its files.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..corpora.layout import AFFECT, CorpusError
from ..corpora.write import CLIP_COLUMNS, SPLITS
from ..decode import is_audio

# What is taken for audio by its name; of other files the first bytes are looked at.
AUDIO_SUFFIXES = {
    ".mp3",
    ".wav",
    ".flac",
    ".ogg",
    ".oga",
    ".opus",
    ".m4a",
    ".m4b",
    ".mp4",
    ".aac",
    ".au",
    ".snd",
    ".aif",
    ".aiff",
    ".aifc",
    ".caf",
    ".wma",
    ".ape",
    ".wv",
    ".mpc",
    ".mka",
    ".webm",
    ".mp2",
    ".mpga",
    ".ac3",
    ".dts",
    ".amr",
    ".3gp",
    ".w64",
    ".rf64",
    ".voc",
    ".tta",
}
TRACKS = "tracks.csv"  # the FMA's table, in its archive fma_metadata.zip
NO_ARTIST = {"", "various", "various artists", "va", "unknown", "unknown artist"}
LEAST_GROUPS = 3  # of a genre: for training, validation and test


@dataclass
class Music:
    """Clips, and what is to be told of the files that are none.

    clips : columns source, genre, valence, energy, danceability, group, split, folder, artist
    """

    clips: pd.DataFrame
    notes: list[str] = field(default_factory=list)


def read_music(audio: Path, labels: Path | None = None, skip: Path | None = None) -> Music:
    """The clips of a folder of music.

    labels : a table of its files (csv or tsv), or the FMA's tracks.csv; without one the top
        folders are the genres
    skip : a folder that is not looked into
    Raises CorpusError.
    """
    files, others = _files_below(audio, skip)
    top = {path.relative_to(audio).parts[0] for path in files if path.parent != audio}
    numbered = bool(top) and all(name.isdecimal() for name in top)
    if labels is None and numbered:
        labels = _tracks_near(audio)
        if labels is None:
            raise CorpusError(
                f"{audio}: its folders are numbers ({', '.join(sorted(top)[:3])}, …), no genres; "
                f"name the table of their files: --labels {TRACKS} for the FMA's"
            )
    if labels is None:
        music = _by_folders(audio, files)
    elif _is_fma(labels):
        music = _fma(labels, audio, files)
    else:
        music = Music(_own_table(labels, audio, files))
    if others:
        music.notes.append(_passed_over(others))
    clips = music.clips.reindex(columns=[*CLIP_COLUMNS, "folder", "artist"])
    texts = ["source", "genre", "group", "split", "folder", "artist"]
    clips[texts] = clips[texts].astype(object)
    for column in ("genre", "group"):  # a tab or a line end would break the label files
        clips[column] = clips[column].map(_one_line, "ignore").astype(object)
    tags = [artist_of(row.source) if pd.isna(row.group) else None for row in clips.itertuples()]
    clips["artist"] = pd.Series(tags, clips.index, dtype=object)
    return Music(clips, music.notes)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def audio_files(folder: Path) -> list[Path]:
    """The audio files at and below a folder, sorted."""
    return _files_below(folder, None)[0]


def _files_below(audio: Path, skip: Path | None) -> tuple[list[Path], list[Path]]:
    """Audio files and the others, sorted, without hidden ones; links are followed once."""
    files, others, seen = [], [], {os.path.realpath(skip)} if skip else set()
    for folder, below, names in os.walk(audio, followlinks=True):
        if os.path.realpath(folder) in seen:
            below.clear()
            continue
        seen.add(os.path.realpath(folder))
        below[:] = sorted(name for name in below if name[0] != "." and name != "__MACOSX")
        for name in sorted(names):
            path = Path(folder, name)
            # A link that leads nowhere is taken up, so that it is named among what is left out.
            if name[0] == "." or not (path.is_file() or path.is_symlink()):
                continue
            known = path.suffix.lower() in AUDIO_SUFFIXES or is_audio(path)
            (files if known else others).append(path)
    return sorted(files), others


def _passed_over(others: list[Path]) -> str:
    kinds = Counter(path.suffix.lower() or "no suffix" for path in others)
    told = ", ".join(f"{count} {kind.lstrip('.')}" for kind, count in kinds.most_common())
    return f"{len(others)} files are no audio and were passed over ({told}), such as {others[0]}"


# --- one subfolder a genre ------------------------------------------------------------------------


def _by_folders(audio: Path, files: list[Path]) -> Music:
    inside = [path for path in files if path.parent != audio]
    if not inside:
        raise CorpusError(
            f"{audio}: no audio in subfolders; one subfolder a genre is needed, or a table of the "
            "files (--labels)"
        )
    notes = []
    if len(inside) < len(files):
        directly = [path for path in files if path.parent == audio]
        notes.append(
            f"{len(directly)} audio files lie in no genre's folder and were passed over, such as "
            f"{directly[0]}"
        )
    genres = [path.relative_to(audio).parts[0] for path in inside]
    clips = pd.DataFrame({"source": [str(path) for path in inside], "genre": genres})
    clips["folder"] = ""
    for genre, members in clips.groupby("genre"):
        clips.loc[members.index, "folder"] = _first_folders(audio / genre, members["source"])
    clips["folder"] = clips["folder"].replace("", np.nan)
    return Music(clips, notes)


def _first_folders(genre: Path, sources: pd.Series) -> list[str]:
    """The folder of each file by which the files of a genre first differ; "" where it has none."""
    parents = [os.path.dirname(source) for source in sources]
    common = os.path.commonpath(parents)
    found = []
    for parent in parents:
        below = os.path.relpath(parent, common)
        found.append("" if below == "." else f"{genre.name}/{Path(below).parts[0]}")
    return found


def artist_of(source: str) -> str | None:
    """The artist that a file's tags name, where libsndfile reads them."""
    with suppress(Exception), soundfile.SoundFile(source) as file:
        artist = _one_line(file.artist)
        return None if artist.casefold() in NO_ARTIST else artist
    return None


# --- tables ---------------------------------------------------------------------------------------


def _own_table(labels: Path, audio: Path, files: list[Path]) -> pd.DataFrame:
    """Columns source, genre, AFFECT, group, split; what the file leaves out is NaN."""
    separator = "\t" if labels.suffix.lower() in (".tsv", ".txt") else ","
    try:
        table = pd.read_csv(
            labels,
            sep=separator,
            dtype=str,
            encoding="utf-8-sig",
            keep_default_na=False,
            na_values=[""],
            skip_blank_lines=False,
            skipinitialspace=True,
        )
    except (OSError, ValueError) as error:
        raise CorpusError(
            f"{labels}: cannot be read ({error}); a csv or tsv with a header is needed"
        ) from error
    table.columns = table.columns.str.strip().str.lower()
    if "path" not in table:
        table = table.rename(columns={"filename": "path", "file": "path"})
    if "genre" not in table:
        table = table.rename(columns={"label": "genre"})
    if "path" not in table or not {"genre", *AFFECT} & set(table):
        raise CorpusError(
            f"{labels}, line 1: columns path and genre, or path and {', '.join(AFFECT)}, are needed"
        )
    table = table.dropna(how="all").reindex(columns=["path", *CLIP_COLUMNS[1:]])
    if table.empty:
        raise CorpusError(f"{labels}: no lines below the header; list the audio files there")
    table["path"] = table["path"].str.strip()
    values = table[list(AFFECT)].apply(pd.to_numeric, errors="coerce")
    in_range = (values.ge(0) & values.le(1)).all(axis=1)
    given = table[list(AFFECT)].notna().any(axis=1)
    for problem, wrong in {
        "no path; fill it in": table["path"].isna(),
        "a file listed twice; remove one of the lines": table["path"].duplicated(),
        f"{', '.join(AFFECT)} must all be numbers from 0 to 1": given & ~in_range,
        "neither a genre nor affect; fill one in": table["genre"].isna() & ~given,
        "split must be train or test, on every line or none": (
            ~table["split"].isin(SPLITS) & table["split"].notna().any()
        ),
    }.items():
        if wrong.any():
            raise CorpusError(f"{labels}, line {wrong.idxmax() + 2}: {problem}")
    table[list(AFFECT)] = values
    by_name = _unique_names(files)
    table["source"] = [_place(path, audio, by_name) for path in table["path"]]
    return table


def _unique_names(files: list[Path]) -> dict[str, Path]:
    """File name -> path, of those names that occur once."""
    counts = Counter(path.name for path in files)
    return {path.name: path for path in files if counts[path.name] == 1}


def _place(path: str, audio: Path, by_name: dict[str, Path]) -> str:
    """Where a listed file lies: as its path says, else the one file of that name."""
    place = (audio / path).resolve()
    if not place.exists():
        place = by_name.get(Path(path).name, place)
    return str(place)


def _tracks_near(audio: Path) -> Path | None:
    for folder in (audio, audio.parent, audio / "fma_metadata", audio.parent / "fma_metadata"):
        if (folder / TRACKS).is_file():
            return folder / TRACKS
    return None


def _is_fma(labels: Path) -> bool:
    """Whether a table is the FMA's: three header lines, of which the last names the index."""
    try:
        with open(labels, encoding="utf-8-sig") as stream:
            lines = [stream.readline() for _ in range(3)]
    except (OSError, ValueError):
        return False  # reading it as a table will tell
    return lines[2].startswith("track_id,")


def _fma(labels: Path, audio: Path, files: list[Path]) -> Music:
    """The FMA's clips: genre_top, its own split, clips of an artist together.

    Affect comes from echonest.csv beside the table, for the tracks that it lists.
    """
    try:
        tracks = pd.read_csv(labels, index_col=0, header=[0, 1], low_memory=False)
        table = pd.DataFrame({"genre": tracks["track", "genre_top"], "group": None, "split": None})
        table["group"] = "artist " + tracks["artist", "id"].astype(str)
        # Its validation clips are training clips here: every notebook draws its own.
        table["split"] = np.where(tracks["set", "split"] == "test", "test", "train")
        affect = labels.with_name("echonest.csv")
        if affect.is_file():
            echonest = pd.read_csv(affect, index_col=0, header=[0, 1, 2], low_memory=False)
            table = table.join(echonest["echonest", "audio_features"][list(AFFECT)])
    except (OSError, ValueError, KeyError) as error:
        raise CorpusError(
            f"{labels}: not the FMA's table ({error}); take it from fma_metadata.zip"
        ) from error
    known = [path for path in files if path.stem.isdecimal() and int(path.stem) in table.index]
    clips = table.reindex([int(path.stem) for path in known])
    clips = clips.assign(source=[str(path) for path in known]).reset_index(drop=True)
    if "valence" in clips:
        told = clips["genre"].notna() | clips["valence"].notna()
    else:
        told = clips["genre"].notna()
    notes = []
    if told.sum() < len(files):
        notes.append(
            f"{len(files) - told.sum()} audio files have no genre_top in {labels} and were passed "
            "over"
        )
    if not told.any():
        raise CorpusError(f"{audio}: no file of it has a genre in {labels}; check both")
    return Music(clips[told].reset_index(drop=True), notes)


# --- groups ---------------------------------------------------------------------------------------


def grouped(clips: pd.DataFrame, twins: pd.Series) -> tuple[pd.Series, list[str]]:
    """The group of each clip (None where it is alone), and what is to be told.

    Clips go together that share a given group, else a folder below the genre or an artist, and
    those that are the same audio (twins, a mark shared by them). Folders and artists do not bind
    where they would leave a genre fewer than three groups: it could not be split.
    """
    by_folder, by_artist = clips["folder"].copy(), clips["artist"].copy()
    notes = []
    joined = _joined([clips["group"], by_folder, by_artist, twins])
    for genre, members in clips.groupby("genre"):
        known = clips.loc[members.index, ["folder", "artist"]].notna().any(axis=None)
        if known and joined[members.index].nunique() < LEAST_GROUPS <= len(members):
            by_folder[members.index] = by_artist[members.index] = None
            notes.append(
                f"{genre}: all clips are by fewer than {LEAST_GROUPS} artists or albums, which "
                "could not be told apart by a split; each clip counts for itself"
            )
    joined = _joined([clips["group"], by_folder, by_artist, twins])
    names = clips["group"]
    for key in (by_artist, by_folder, twins):
        names = names.combine_first(key)
    sizes = joined.groupby(joined).transform("size")
    first = names.groupby(joined).transform("first")
    return first.where((sizes > 1) | clips["group"].notna(), None), notes


def _joined(keys: list[pd.Series]) -> pd.Series:
    """A number for each clip, the same where clips share a value of any key, at any remove."""
    clips, values, count = [], [], 0
    for key in keys:
        codes, names = pd.factorize(key)
        there = np.flatnonzero(codes >= 0)
        clips.append(there)
        values.append(codes[there] + count)
        count += len(names)
    n = len(keys[0])
    rows, columns = np.concatenate(clips), np.concatenate(values) + n
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(n + count, n + count))
    return pd.Series(connected_components(graph, directed=False)[1][:n], keys[0].index)
