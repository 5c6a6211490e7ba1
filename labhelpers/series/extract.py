"""A folder of music becomes a corpus in the lab's layout."""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from ..audio import FRAME_RATE, AudioError, extract
from ..corpora.layout import FOLDERS, MARKER, Corpus, CorpusError
from ..corpora.write import SPLITS, array_name, clip_folders, in_processes, save_array, write_labels
from ..files import write_text
from .music import Music, grouped, read_music

MANIFEST = "extracted.jsonl"  # [id, stamp of the source, Made] of each clip that is done
SHORT = 0.5  # of the median length: clips below it are named
SHOWN = 5  # of a kind of finding


@dataclass
class Summary:
    """What `extract_folder` did.

    done, skipped : clips extracted, and found done already
    failed : (file, reason) of those left out; notes : sentences on what else was found
    """

    done: int
    skipped: int
    failed: list[tuple[str, str]]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = (
            f"{self.done} clips extracted, {self.skipped} were there already, "
            f"{len(self.failed)} left out"
        )
        left_out = [f"  left out: {reason}" for _, reason in self.failed]
        return "\n".join([counts, *left_out, *[f"  note: {note}" for note in self.notes]])


@dataclass(frozen=True)
class Made:
    """What is known of a clip's arrays: frames of the full one, and a digest of its content."""

    frames: int
    digest: str


def extract_folder(
    audio: str | Path,
    out: str | Path,
    *,
    labels: str | Path | None = None,
    jobs: int = -1,
    dask: str | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    seconds: float | None = 30,
    progress: bool = True,
) -> Summary:
    """Turn a folder of music into a corpus in the lab's layout.

    audio : a folder of any kind that `series.music` knows
    labels : a table of its files (csv or tsv): column path (relative to `audio`) and genre and/or
        valence, energy, danceability (0-1); optional are group (clips of one track, kept on one
        side of the split) and split (train or test). Or the FMA's tracks.csv
    jobs : processes, -1 = one a core
    dask : address of a running cluster (tcp://…) that sees the same folders
    seconds : of longer files, the middle that is used; None = all of it
    A second call does what is missing or whose source changed. Returns a Summary. Raises
    CorpusError.
    """
    audio, out = Path(audio).expanduser().resolve(), Path(out).expanduser().resolve()
    if jobs == 0:
        raise CorpusError("jobs is 0; give a number of processes, or -1 for one a core")
    if seconds is not None and not seconds > 0:
        raise CorpusError(f"seconds is {seconds:g}; give the length to take of each file, above 0")
    if (out / MARKER).exists() and not (out / MANIFEST).exists():
        raise CorpusError(
            f"{out}: holds a corpus that was not extracted here; choose another folder"
        )
    music = read_music(audio, Path(labels) if labels else None, skip=out)
    music.clips = with_ids(music.clips.reset_index(drop=True), audio)
    how = {"jobs": jobs, "dask": dask, "progress": progress}
    try:
        return _bring_up_to_date(out, music, seconds, test_fraction, seed, how)
    except OSError as error:
        raise CorpusError(
            f"{out}: cannot be written ({error}); make room or name another folder, then repeat: "
            "what is done is kept"
        ) from error


def _bring_up_to_date(
    out: Path, music: Music, seconds: float | None, test_fraction: float, seed: int, how: dict
) -> Summary:
    out.mkdir(parents=True, exist_ok=True)
    arrays = Arrays(out)
    edited = Corpus(out).mapping if (out / "class_mapping.json").is_file() else {}
    before, stamps = _read_manifest(out / MANIFEST), {}
    made, todo = {}, []
    for row in music.clips.itertuples():
        stamps[row.id] = _stamp(row.source, seconds)
        stamp, known = before.get(row.id, (None, None))
        if stamp == stamps[row.id] and arrays.complete(row):
            made[row.id] = known
        else:
            todo.append((row.id, row.source, seconds, arrays.targets(row)))
    skipped, failed = len(made), []
    with open(out / MANIFEST, "a", encoding="utf-8") as log:
        log.write("\n")  # after a kill the last line may be cut
        for (clip, source, *_), result in in_processes(extract_clip, todo, **how):
            if isinstance(result, str):
                failed.append((source, result))
            else:
                made[clip] = result
                print(_manifest_line(clip, stamps[clip], result), file=log, flush=True)
    clips = music.clips[music.clips["id"].isin(made)].reset_index(drop=True)
    if clips.empty:
        raise CorpusError(
            f"{out}: no corpus, for none of {len(todo)} files could be used; "
            f"the first: {failed[0][1]}"
        )
    twins = _twins(clips, made)
    clips["group"], notes = grouped(clips, twins)
    clips["split"], moved = with_split(clips, twins, test_fraction, seed)
    notes = [*music.notes, *notes, *_about_twins(clips, twins), *moved, *_about_short(clips, made)]
    arrays.arrange(clips, known={*before, *stamps})
    # Each genre is a class of its own, but where somebody edited an earlier call's file.
    mapping = {
        genre: edited.get(genre, genre) for genre in sorted(clips["genre"].dropna().unique())
    }
    write_text(out / "class_mapping.json", json.dumps(mapping, indent=1, ensure_ascii=False))
    write_labels(out, clips)
    lines = [_manifest_line(clip, stamps[clip], made[clip]) for clip in sorted(clips["id"])]
    write_text(out / MANIFEST, "\n".join([*lines, ""]))
    return Summary(len(made) - skipped, skipped, sorted(failed), notes)


def extract_clip(clip: str, source: str, seconds: float | None, targets: list[tuple[Path, bool]]):
    """Extract one file and write its arrays; returns what was Made, or the reason why not."""
    try:
        arrays = extract(source, seconds=seconds)
    except AudioError as error:
        return str(error)
    except Exception as error:  # whatever one file does, the others go on
        return f"{source}: {type(error).__name__}: {error}; leave it out"
    for path, beat in targets:
        save_array(path, arrays[beat])
    full = np.ascontiguousarray(arrays[False])
    return Made(full.shape[1], hashlib.sha1(full).hexdigest())


class Arrays:
    """The array files of a corpus that is being extracted, as they lie when it is opened."""

    def __init__(self, out: Path):
        self.out = out
        self.places: dict[tuple[str, str], str] = {}  # (folder, file name) -> split
        for folder in FOLDERS.values():
            for split in SPLITS:
                if (out / folder / split).is_dir():
                    for name in os.listdir(out / folder / split):
                        self.places[folder, name] = split

    def complete(self, row) -> bool:
        """Whether all arrays of a clip are there, in whichever split."""
        name = array_name(row.id)
        return all((folder, name) in self.places for folder, _ in clip_folders(row))

    def targets(self, row) -> list[tuple[Path, bool]]:
        """Where to write a clip's arrays (path, whether beat-synced), until its split is known."""
        found = []
        for folder, beat in clip_folders(row):
            split = self.places.setdefault((folder, array_name(row.id)), "train")
            found.append((self.out / folder / split / array_name(row.id), beat))
        return found

    def arrange(self, clips: pd.DataFrame, known: set[str]) -> None:
        """Move each clip's arrays to its split; remove those of known clips that are none now."""
        wanted = {}
        for row in clips.itertuples():
            for folder, _ in clip_folders(row):
                wanted[folder, array_name(row.id)] = row.split
        ours = {array_name(clip) for clip in known}
        for (folder, name), split in self.places.items():
            target = wanted.get((folder, name))
            if target is None and name in ours:  # of a clip that failed it was never written
                (self.out / folder / split / name).unlink(missing_ok=True)
            elif target not in (None, split):
                (self.out / folder / target).mkdir(exist_ok=True)
                os.replace(self.out / folder / split / name, self.out / folder / target / name)


# --- what is done already -------------------------------------------------------------------------


def _stamp(source: str, seconds: float | None) -> list:
    """What must not have changed for an array to still be good."""
    stat = os.stat(source) if os.path.exists(source) else None
    return [source, stat and stat.st_size, stat and stat.st_mtime_ns, seconds]


def _manifest_line(clip: str, stamp: list, made: Made) -> str:
    return json.dumps([clip, stamp, [made.frames, made.digest]])


def _read_manifest(path: Path) -> dict[str, tuple[list, Made]]:
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            clip, stamp, made = json.loads(line)
            found[clip] = (stamp, Made(*made))
        except (ValueError, TypeError):  # a kill may cut a line short: that clip is done again
            continue
    return found


# --- ids, twins and splits ------------------------------------------------------------------------


def with_ids(clips: pd.DataFrame, audio: Path) -> pd.DataFrame:
    """The table with a column id: safe and unique, and the same when other files are added."""
    relative = pd.Series([os.path.relpath(source, audio) for source in clips["source"]])
    ids = pd.Series([safe_id(Path(source).stem) for source in clips["source"]], dtype=object)
    clash = ids.str.casefold().duplicated(keep=False)
    return clips.assign(id=ids.where(~clash, ids + "-" + relative.map(_hash).str[:8]))


def safe_id(stem: str) -> str:
    """A file's stem as a clip id: letters, digits, _ and -, the first an ASCII letter or digit."""
    text = re.sub(r"[^\w-]+", "-", unicodedata.normalize("NFC", stem)).strip("-")[:80]
    return text if re.match(r"[A-Za-z0-9]", text) else f"clip-{text or 'x'}"


def _hash(text: str) -> str:
    return hashlib.sha1(text.encode(errors="surrogateescape")).hexdigest()


def _twins(clips: pd.DataFrame, made: dict[str, Made]) -> pd.Series:
    """A mark shared by clips that are the same audio, None for the others."""
    digests = clips["id"].map(lambda clip: f"audio {made[clip].digest[:12]}")
    return digests.where(digests.duplicated(keep=False), None)


def with_split(
    clips: pd.DataFrame, twins: pd.Series, test_fraction: float, seed: int
) -> tuple[pd.Series, list[str]]:
    """The split of each clip, and what is to be told.

    Where none is given: a share of each genre's groups, by hash, so that adding files moves few. Of
    two groups or more one goes to the test split, however small the share: without it nothing could
    be judged. A given split stands, but twins of a training clip leave the test split.
    """
    if clips["split"].notna().any():
        in_train = set(twins[(clips["split"] == "train") & twins.notna()])
        leaks = (clips["split"] == "test") & twins.isin(in_train)
        told = [f"{leaks.sum()} of them stood in both splits; they are training clips now"]
        return clips["split"].mask(leaks, "train"), told if leaks.any() else []
    groups = clips["group"].fillna(clips["id"])
    stratum = clips["genre"].fillna("").groupby(groups).first()
    order = pd.Series({group: _hash(f"{seed}/{group}") for group in stratum.index})
    rank, size = order.groupby(stratum).rank(), stratum.groupby(stratum).transform("size")
    least = ((size > 1) & (test_fraction > 0)).astype(int)
    in_test = rank <= (size * test_fraction).round().clip(lower=least)
    return groups.map(in_test).map({True: "test", False: "train"}), []


def _about_twins(clips: pd.DataFrame, twins: pd.Series) -> list[str]:
    if not twins.notna().any():
        return []
    told = []
    for _, members in clips.groupby(twins):
        genres = " and ".join(sorted(set(members["genre"].dropna())))
        told.append(f"{' = '.join(members['source'])} ({genres})")
    more = "; …" if len(told) > SHOWN else ""
    return [
        f"{twins.notna().sum()} clips are the same audio as another, and are kept on one side of "
        f"every split: {'; '.join(told[:SHOWN])}{more}"
    ]


def _about_short(clips: pd.DataFrame, made: dict[str, Made]) -> list[str]:
    seconds = clips["id"].map(lambda clip: made[clip].frames) / FRAME_RATE
    median = seconds.median()
    short = clips[seconds < SHORT * median]
    if short.empty:
        return []
    told = [f"{row.source} ({seconds[row.Index]:.1f} s)" for row in short[:SHOWN].itertuples()]
    more = ", …" if len(short) > SHOWN else ""
    return [
        f"{len(short)} clips are much shorter than the others ({median:.0f} s): "
        f"{', '.join(told)}{more}"
    ]
