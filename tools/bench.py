"""Measurements on the corpus in hand: reading it, and training on it.

    python -m tools.bench data|train [--data DIR]

Times are taken in turn, one of each kind and round, and told as medians of ratios within a round:
another process that takes the processor for a while slows both sides of a ratio.
"""

from __future__ import annotations

import argparse
import gzip
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from labhelpers.batches import batches
from labhelpers.corpora.find import find_corpus
from labhelpers.corpora.layout import Corpus
from labhelpers.datasets import SpectrogramDataset
from labhelpers.models import Classifier, CNNBackbone, LSTMBackbone
from labhelpers.training import fit, half_type, pick_device, set_seed

BATCH_SIZE = 32
LONG = 20  # seconds: a skeleton's pass that took longer is not repeated in the other rounds
BOTH_WAYS = {"layers": 2, "bidirectional": True, "dropout": 0.2}
# Name -> (backbone, its options, features, beat, clips a measurement, of these the skeleton's):
# seconds each on two processor cores.
NETWORKS = {
    "LSTM beat fused": (LSTMBackbone, BOTH_WAYS, "fused", True, 320, 160),
    "CNN full mel": (CNNBackbone, {}, "mel", False, 32, 16),
    "LSTM full mel": (LSTMBackbone, BOTH_WAYS, "mel", False, 64, 16),
}


@contextmanager
def _environment(**values: str):
    """Set variables for the processes and calls within."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _fresh_process(initializer=None) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer)


def _seconds(call, *args, **options) -> float:
    start = time.perf_counter()
    call(*args, **options)
    return time.perf_counter() - start


# --- reading --------------------------------------------------------------------------------------


def data(corpus: Corpus, rounds: int = 3) -> dict[str, float]:
    """First and second load of the full genre training split, a plain loop, and peak memory.

    Returns seconds `first`, `second` and `plain`, and the ratios `first/plain` and `memory/array`.
    """
    paths = list(SpectrogramDataset(corpus, "genre").clips["id"])
    table = corpus.labels("genre", "train").set_index("id")
    paths = [table.at[clip, "path"] for clip in paths]
    _plain_loop(paths)  # so that nobody pays for a cold disk
    times = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder, _environment(LABHELPERS_CACHE=folder):
            loads = _seconds(_load, corpus), _seconds(_load, corpus)
            times.append((*loads, _seconds(_plain_loop, paths)))
    first, second, plain = np.median(times, axis=0)
    with (
        tempfile.TemporaryDirectory() as folder,
        _environment(LABHELPERS_CACHE=folder),
        _fresh_process() as process,
    ):
        peak, size = process.submit(_peak_memory, corpus).result()
    result = {
        "first": first,
        "second": second,
        "plain": plain,
        "first/plain": float(np.median([a / c for a, _, c in times])),
        "memory/array": peak / size,
    }
    ratio, memory = result["first/plain"], result["memory/array"]
    print(f"{len(paths)} full genre clips of {corpus.name}, {size / 1e6:.0f} MB as one array")
    print(f"a plain loop over the files   {plain:7.2f} s, median of {rounds}")
    print(f"first load to a tensor        {first:7.2f} s   {ratio:.2f} x the plain loop")
    print(f"second load to a tensor       {second:7.3f} s")
    print(f"peak memory of a first load   {peak / 1e6:7.0f} MB  {memory:.2f} x the array")
    return result


def _load(corpus: Corpus) -> torch.Tensor:
    return SpectrogramDataset(corpus, "genre").x[-1].sum()


def _plain_loop(paths: list[Path]) -> None:
    for path in paths:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as stream:
            np.load(stream, allow_pickle=False)


def _peak_memory(corpus: Corpus) -> tuple[int, int]:
    """Bytes by which a first load raises the peak of this process, and the array's size."""
    before = _high_water()
    x = SpectrogramDataset(corpus, "genre").x
    return _high_water() - before, x.numel() * x.element_size()


def _high_water() -> int:
    # Not ru_maxrss: a new process inherits the one that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(peak) * 1024


# --- training -------------------------------------------------------------------------------------


def train(corpus: Corpus, rounds: int = 3) -> pd.DataFrame:
    """Clips a second of `fit`, of the bare loop it cannot beat, and of the lab skeleton's way.

    Returns one row a network: floor, fit, skeleton (clips/s), fit/floor, fit/skeleton.
    """
    device = pick_device()
    print(f"{torch.get_num_threads()} threads, {device}, batches of {BATCH_SIZE}")
    print(f"clips a second, medians of {rounds}")
    rows = []
    for name in NETWORKS:
        print(f"measuring {name} …", flush=True)
        rows.append(_measure(corpus, name, rounds, device))
        numbers = {key: value for key, value in rows[-1].items() if key != "network"}
        print("  ".join(f"{key} {value:.2f}" for key, value in numbers.items()), flush=True)
    table = pd.DataFrame(rows).set_index("network")
    print(table.to_string(float_format="%.2f"))
    return table


def _measure(corpus: Corpus, name: str, rounds: int, device) -> dict:
    kind, options, features, beat, clips, few = NETWORKS[name]
    ds = SpectrogramDataset(corpus, "genre", features=features, beat=beat)
    set_seed(0)
    ds = ds.subset(torch.randperm(len(ds))[:clips])
    model = Classifier(kind(ds.n_features, **options), ds.classes).normalise_from(ds).to(device)
    moved = ds.to(device)
    ready = list(batches(moved, BATCH_SIZE, shuffle=True, device=device))
    few = min(few, len(ds))  # the skeleton is slow: its time a clip, from fewer of them
    arrays = [ds[i][0].double().numpy() for i in range(few)]
    start = (kind, arrays, ds.y[:few].tolist(), len(ds.classes), str(device))
    times, theirs = [], 0.0
    # The flags of the package are not the skeleton's: a process of its own, without them.
    with _environment(THP_MEM_ALLOC_ENABLE="0"), _fresh_process(_no_flags) as process:
        process.submit(skeleton_start, *start).result()
        for number in range(rounds + 1):
            floor = _seconds(_bare_loop, model, ready, device)
            how = {"epochs": 1, "batch_size": BATCH_SIZE, "device": device, "log": False}
            ours = _seconds(fit, model, moved, **how)
            if number:  # the first one warms up
                if theirs < LONG:
                    theirs = process.submit(skeleton_epoch).result()
                times.append((floor, ours, theirs * len(ds) / few))
    times = np.array(times)
    floor, ours, skeleton = len(ds) / np.median(times, axis=0)
    return {
        "network": name,
        "floor": floor,
        "fit": ours,
        "skeleton": skeleton,
        "fit/floor": np.median(times[:, 0] / times[:, 1]),
        "fit/skeleton": np.median(times[:, 2] / times[:, 1]),
    }


def _bare_loop(model, ready, device) -> None:
    """Forward, backward and step on batches that lie in place, and nothing else."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    half = half_type(device)
    model.train()
    for x, lengths, y in ready:
        with torch.autocast(device.type, half) if half else nullcontext():
            outputs = model(x, lengths)
        loss = model.loss(outputs.float(), model.targets(y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    loss.item()  # a GPU has finished only now


# The lab skeleton's way, written for the comparison: one padded copy a clip, a DataLoader, packed
# sequences.


class _ClipByClip(torch.utils.data.Dataset):
    def __init__(self, arrays: list[np.ndarray], labels: list[int]):
        self.arrays, self.labels = arrays, labels
        self.longest = max(map(len, arrays))

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, i: int):
        padded = np.zeros((self.longest, self.arrays[i].shape[1]))
        padded[: len(self.arrays[i])] = self.arrays[i]
        return padded, self.labels[i], len(self.arrays[i])


class _PackedLSTM(nn.Module):
    def __init__(self, n_features: int, n_classes: int):
        super().__init__()
        self.lstm = nn.LSTM(n_features, 128, 2, batch_first=True, bidirectional=True, dropout=0.2)
        self.head = nn.Linear(256, n_classes)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        h = self.lstm(packed)[1][0]  # (layers * 2, B, H)
        return self.head(torch.cat([h[-2], h[-1]], dim=1))


class _PlainCNN(nn.Module):
    def __init__(self, n_features: int, n_classes: int):
        super().__init__()
        blocks = CNNBackbone(n_features).blocks
        layers = nn.Sequential(*(layer for block in blocks for layer in block))
        self.blocks = layers.to(memory_format=torch.contiguous_format)
        self.head = nn.Linear(128, n_classes)

    def forward(self, x, lengths):
        return self.head(self.blocks(x.unsqueeze(1)).mean((2, 3)))


_skeleton: dict = {}


def _no_flags() -> None:
    torch.set_flush_denormal(False)  # before this process has started any thread


def skeleton_start(kind, arrays, labels, n_classes: int, device: str) -> None:
    """Set up, in a process of its own, what `skeleton_epoch` trains."""
    network = _PackedLSTM if kind is LSTMBackbone else _PlainCNN
    model = network(arrays[0].shape[1], n_classes).to(device)
    clips = _ClipByClip(arrays, labels)
    # "fork" is the default, but not in a process that was itself spawned.
    workers = {"num_workers": min(2, os.cpu_count()), "multiprocessing_context": "fork"}
    loader = torch.utils.data.DataLoader(clips, BATCH_SIZE, shuffle=True, **workers)
    optimizer = torch.optim.Adam(model.parameters())
    _skeleton.update(model=model, loader=loader, optimizer=optimizer, device=device)


def skeleton_epoch() -> float:
    """Seconds of one pass."""
    model, optimizer, device = (_skeleton[name] for name in ("model", "optimizer", "device"))
    start = time.perf_counter()
    for x, y, lengths in _skeleton["loader"]:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x.float().to(device), lengths), y.to(device))
        loss.backward()
        optimizer.step()
        loss.item()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__)
    kinds = {"data": data, "train": train}
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("--data", help="the corpus (default: as notebooks find it)")
    arguments = parser.parse_args()
    kinds[arguments.kind](find_corpus(arguments.data))


if __name__ == "__main__":
    main()
