"""Do the tests notice a wrong program? Small wrong changes, one at a time, each of which must fail.

    python -m tools.mutations                 all of them, some minutes
    python -m tools.mutations training 07     those whose file or name has one of these words

The changes are the mistakes that music machine learning is known for: the wrong program runs, and
gives plausible numbers. Each is made in a copy of the working tree, where the tests near it run;
without a change, those must pass.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import IPython  # noqa: F401  these are what the tests and the package load
import librosa  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import nbformat  # noqa: F401  nbval's, and the slowest of them
import pandas  # noqa: F401
import pytest
import scipy.stats  # noqa: F401
import seaborn  # noqa: F401
import sklearn.svm  # noqa: F401
import torch.utils.data  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Wrong:
    """A wrong change: what it is, the right text and the wrong one, and the tests near it."""

    what: str
    right: str
    wrong: str
    near: str  # files of tests/, and -k with words of the tests, to be fast; or a notebook


# File -> wrong changes to it.
MUTATIONS: dict[str, list[Wrong]] = {
    "labhelpers/audio.py": [
        Wrong("dB against 1, not the clip's maximum", "ref=np.max", "ref=1.0", "test_extract.py"),
        Wrong(
            "beat-synced by the mean", "aggregate=np.median", "aggregate=np.mean", "test_extract.py"
        ),
        Wrong(
            "mel and chroma swapped",
            "return S[:N_MELS], S[N_MELS:]",
            "return S[N_MELS:], S[:N_MELS]",
            "test_extract.py",
        ),
    ],
    "labhelpers/corpora/layout.py": [
        Wrong(
            "energy and danceability swapped",
            '("valence", "energy", "danceability")',
            '("valence", "danceability", "energy")',
            "test_corpora.py",
        ),
        Wrong(
            "a fingerprint without the labels",
            " + path.read_bytes())",
            ")",
            "test_corpora.py test_report.py",
        ),
        Wrong(
            "a fingerprint without the arrays",
            "digest.update(repr(sorted(sizes.items()))",
            "digest.update(repr(len(sizes))",
            "test_corpora.py test_report.py",
        ),
        Wrong(
            "clips with NaN taken",
            "if not np.isfinite(array).all():",
            "if False:",
            "test_corpora.py",
        ),
    ],
    "labhelpers/series/extract.py": [
        Wrong(
            "a manifest without the length taken",
            "stat and stat.st_mtime_ns, seconds]",
            "stat and stat.st_mtime_ns]",
            "test_extract.py -k anew",
        ),
        Wrong(
            "a manifest without the modification time",
            "stat and stat.st_mtime_ns, seconds]",
            "seconds]",
            "test_extract.py -k anew",
        ),
    ],
    "labhelpers/datasets.py": [
        Wrong(
            "an array reshaped instead of transposed",
            "= clip.T",
            "= clip.reshape(clip.shape[1], -1)",
            "test_datasets.py -k items_are",
        ),
        Wrong(
            "labels off by one",
            'self.clips["code"].to_numpy(np.int64))',
            '(self.clips["code"].to_numpy(np.int64) + 1) % len(self.classes))',
            "test_datasets.py -k items_are",
        ),
        Wrong(
            "padding with 0 dB, the loudest there is",
            "result[:, :N_MELS] = SILENCE_DB",
            "result[:, :N_MELS] = 0",
            "test_datasets.py -k silence",
        ),
        Wrong(
            "chroma taken for mel",
            '"chroma": slice(N_MELS, N_FEATURES)',
            '"chroma": slice(0, N_FEATURES - N_MELS)',
            "test_datasets.py -k items_are",
        ),
        Wrong(
            "a cache key without the modification time",
            "(str(path), stat.st_size, stat.st_mtime_ns)",
            "(str(path), stat.st_size)",
            "test_datasets.py -k a_changed_file",
        ),
        Wrong(
            "a cache key without the size",
            "(str(path), stat.st_size, stat.st_mtime_ns)",
            "(str(path), stat.st_mtime_ns)",
            "test_datasets.py -k a_changed_file",
        ),
        Wrong(
            "a cache key without the way of padding",
            "facts = [SILENCE_DB, N_FEATURES]",
            "facts = []",
            "test_datasets.py -k way_of_padding",
        ),
        Wrong(
            "the array that was replaced is kept",
            "shutil.rmtree(other)",
            "pass",
            "test_datasets.py -k a_changed_file",
        ),
        Wrong(
            "the cache can be written through a tensor",
            'mmap_mode="c"',
            'mmap_mode="r+"',
            "test_datasets.py -k second_load",
        ),
        Wrong(
            "clips of one track on both sides of a split",
            "pd.Series(strata(ds), ds.groups)",
            "pd.Series(strata(ds), ds.ids)",
            "test_datasets.py -k groups_together",
        ),
        Wrong(
            "folds that part tracks",
            "levels, ds.groups))",
            "levels, ds.ids))",
            "test_datasets.py -k groups_together",
        ),
        Wrong(
            "a class that is missing from one side",
            "min(max(1, round(",
            "min(max(0, round(",
            "test_datasets.py -k two_clips",
        ),
        Wrong(
            "held-out clips that depend on the axis",
            "mean = ds.clips[list(AFFECT)]",
            "mean = ds.clips[list(ds.axes)]",
            "test_datasets.py -k held_out",
        ),
        Wrong(
            "classes of the test split",
            'if split != "train":',
            "if split != split:",
            "test_datasets.py -k class",
        ),
        Wrong(
            "train + validation out of order",
            'clips.sort_values("position")',
            "clips",
            "test_datasets.py -k union",
        ),
        Wrong(
            "a subset that forgets its order",
            "return self.array[self.positions][",
            "return self.array[self.positions.sort().values][",
            "test_datasets.py -k subsets",
        ),
    ],
    "labhelpers/batches.py": [
        Wrong(
            "batches not shuffled",
            "order = torch.randperm(len(lengths))",
            "order = torch.arange(len(lengths))",
            "test_batches.py",
        ),
        Wrong(
            "short clips first",
            "turns = torch.randperm(len(chunks))",
            "turns = torch.arange(len(chunks))",
            "test_batches.py",
        ),
        Wrong(
            "windows that all start at the front",
            "return (torch.rand(len(lengths)) * choices)",
            "return (0 * torch.rand(len(lengths)) * choices)",
            "test_batches.py",
        ),
        Wrong(
            "targets of other clips", "ds.y[order].to(device)", "ds.y.to(device)", "test_batches.py"
        ),
        Wrong(
            "masks that reach the padding",
            "_bands(lengths, augment.time_width",
            "_bands(torch.full_like(lengths, x.shape[1]), augment.time_width",
            "test_batches.py",
        ),
        Wrong(
            "masks of 0 dB",
            "x = torch.where(masked[:, :, None], mean, x)",
            "x = torch.where(masked[:, :, None], 0 * mean, x)",
            "test_batches.py",
        ),
        Wrong(
            "mixup of the clips alone",
            "targets = share * targets + (1 - share) * targets[other]",
            "targets = targets",
            "test_batches.py",
        ),
    ],
    "labhelpers/models.py": [
        Wrong(
            "rows not normalised",
            "return (x - self.mean) / self.std",
            "return x",
            "test_models.py -k 'normalisation or row'",
        ),
        Wrong(
            "normalised with the padding",
            "x[frame_mask(lengths, x.shape[1])].double()",
            "x.flatten(0, 1).double()",
            "test_models.py -k normalisation",
        ),
        Wrong(
            "the backward LSTM reads the padding first",
            "reverse_frames(h, lengths))[0]",
            "h.flip(1))[0]",
            "test_models.py",
        ),
        Wrong("the state behind the clip's end", "lengths - 1]", "-1]", "test_models.py"),
        Wrong(
            "the backward state at the last step",
            "h[:, 0, half:]",
            "h[torch.arange(len(h)), lengths - 1, half:]",
            "test_models.py",
        ),
        Wrong(
            "no dropout before the LSTM's head",
            "return self.dropout(self.pool(h, lengths))",
            "return self.pool(h, lengths)",
            "test_models.py",
        ),
        Wrong(
            "no dropout between the LSTM's layers",
            "h = self.dropout(h) if depth else h",
            "",
            "test_models.py",
        ),
        Wrong(
            "no dropout before the CNN's head",
            "return self.dropout(torch.cat([mean, peak], dim=1))",
            "return torch.cat([mean, peak], dim=1)",
            "test_models.py -k drops_out",
        ),
        Wrong(
            "the CNN sees the padding",
            "h = h * mask[..., None]",
            "h = h * 1",
            "test_models.py -k cnn",
        ),
        Wrong(
            "ReLU before batch norm",
            "nn.BatchNorm2d(outputs),\n            nn.ReLU(),",
            "nn.ReLU(),\n            nn.BatchNorm2d(outputs),",
            "test_models.py -k 'cnn or block'",
        ),
        Wrong(
            "flat targets broadcast",
            "return _checked(y, self.axes)\n\n    def loss(self, "
            "outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:\n        return REG",
            "return y\n\n    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> "
            "torch.Tensor:\n        return REG",
            "test_models.py -k flat",
        ),
        Wrong(
            "scaled losses as equal ones",
            "losses = losses / self.scale",
            "pass",
            "test_models.py -k multitask",
        ),
        Wrong(
            "the genre loss at full weight",
            "return self.genre_weight * genre_loss",
            "return genre_loss",
            "test_models.py -k genre_batches",
        ),
        Wrong(
            "a checkpoint that unpickles",
            "weights_only=True)\n        model = build",
            "weights_only=False)\n        model = build",
            "test_models.py -k pickle",
        ),
    ],
    "labhelpers/training.py": [
        Wrong(
            "evaluation mode forgotten",
            "    model.eval()\n    device = next",
            "    device = next",
            "test_training.py -k 'order or validation_has'",
        ),
        Wrong(
            "training mode forgotten",
            "    model.train()\n    keep",
            "    keep",
            "test_training.py -k 'validation_has or frozen'",
        ),
        Wrong(
            "augmentation at evaluation too",
            "x = cut(ds, where, starts, frames).to(device)",
            "x = cut(ds, where, starts, frames).to(device) + torch.randn(1, device=device)",
            "test_training.py -k 'validation_has or order'",
        ),
        Wrong(
            "no augmentation",
            "        if augment:\n            x, lengths",
            "        if False:\n            x, lengths",
            "test_training.py -k validation_has",
        ),
        Wrong(
            "CROP ignored in training",
            "stream = alternate(splits, batch_size, crop, device)",
            "stream = alternate(splits, batch_size, None, device)",
            "test_training.py -k validation_has",
        ),
        Wrong(
            "CROP ignored in validation",
            "row |= validate(kept, val, crop=crop, batch_size=batch_size)",
            "row |= validate(kept, val, batch_size=batch_size)",
            "test_training.py -k validation_has",
        ),
        Wrong(
            "gradients not clipped",
            "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)",
            "pass",
            "test_training.py -k clipped",
        ),
        Wrong(
            "weight decay ignored",
            "lr=lr, weight_decay=weight_decay",
            "lr=lr, weight_decay=0.0",
            "test_training.py -k decay",
        ),
        Wrong(
            "Adam's decay for AdamW's",
            "torch.optim.AdamW(trained",
            "torch.optim.Adam(trained",
            "test_training.py -k decay",
        ),
        Wrong(
            "the average's decay by the epoch",
            "1 - 1 / (steps * ema)",
            "1 - 1 / ema",
            "test_training.py -k average",
        ),
        Wrong(
            "raw weights validated where the average is kept",
            "row |= validate(kept, val",
            "row |= validate(model, val",
            "test_training.py -k average",
        ),
        Wrong(
            "raw weights kept instead of the average",
            'kept = state["average"].module',
            "kept = model",
            "test_training.py -k average",
        ),
        Wrong(
            "the best state an alias of the live one",
            "{name: v.clone() for name, v in kept.state_dict().items()}",
            "dict(kept.state_dict())",
            "test_training.py -k alias",
        ),
        Wrong(
            "the best epoch not restored",
            '        if state["best"]:\n            model.load',
            "        if False:\n            model.load",
            "test_training.py -k 'best or inter'",
        ),
        Wrong(
            "an epoch of the warm-up kept",
            "first = min(math.ceil(WARM_UP * planned)",
            "first = min(0",
            "test_training.py -k best_epoch",
        ),
        Wrong(
            "the last epoch kept for the best",
            "return int(smooth[first:].idxmin()) + 1",
            "return len(losses)",
            "test_training.py -k best_epoch",
        ),
        Wrong(
            "resume without the best state",
            '    state["best"] = content["best"]',
            "",
            "test_training.py -k kill",
        ),
        Wrong(
            "resume of another training",
            'if content["arguments"] != told:',
            "if False:",
            "test_training.py -k another",
        ),
        Wrong(
            "resume with other labels",
            "digest.update(split.y.numpy().tobytes())",
            "pass",
            "test_training.py -k another",
        ),
        Wrong(
            "a resume that unpickles",
            'map_location="cpu", weights_only=True)',
            'map_location="cpu", weights_only=False)',
            "test_training.py -k pickle",
        ),
        Wrong(
            "a frozen batch norm that moves",
            "            module.eval()",
            "            pass",
            "test_training.py -k frozen",
        ),
        Wrong(
            "the loss averaged over batches",
            "finite.float()]) * len(x)\n        count += len(x)",
            "finite.float()])\n        count += 1",
            "test_training.py -k over_all",
        ),
        Wrong(
            "rho averaged over batches",
            "score = mean_rho(ds.y, predictions)",
            "score = np.mean([mean_rho(*pair) for pair in "
            "zip(ds.y.split(4), predictions.split(4))])",
            "test_training.py -k over_all",
        ),
        Wrong(
            "predictions in the order of their lengths",
            "torch.cat(values)[order.argsort().to(device)].cpu()",
            "torch.cat(values).cpu()",
            "test_training.py -k order",
        ),
        Wrong(
            "one window for all",
            "n = N_WINDOWS if longest > frames else 1",
            "n = 1",
            "test_training.py -k windows",
        ),
        Wrong(
            "an embedding of one window",
            "return over_windows(backbone, ds, backbone.mean.device, crop, batch_size).numpy()",
            "return over_windows(backbone, ds, backbone.mean.device, None, batch_size).numpy()",
            "test_training.py -k windows",
        ),
        Wrong(
            "predictions in half precision",
            "        return model.decode(model(x, lengths))",
            "        with torch.autocast(x.device.type, torch.bfloat16):\n"
            "            return model.decode(model(x, lengths))",
            "test_training.py -k 'order or half'",
        ),
        Wrong(
            "half precision on any CPU",
            'if half is False or (half is None and device.type != "cuda"):',
            "if half is False:",
            "test_training.py -k float32_unless",
        ),
        Wrong(
            "a refit without the validation clips",
            "both = [union(splits[0], val), *splits[1:]]",
            "both = splits",
            "test_training.py -k seeds",
        ),
        Wrong(
            "each seed the same",
            "seed=seed, **options))",
            "seed=0, **options))",
            "test_training.py -k seeds",
        ),
        Wrong(
            "a refit as long as the choosing run",
            "epochs=chosen.best_epoch, seed",
            "epochs=epochs, seed",
            "test_training.py -k seeds",
        ),
        Wrong(
            "tasks one after the other",
            "order = torch.randperm(len(turns))",
            "order = torch.arange(len(turns))",
            "test_training.py -k alternate",
        ),
        Wrong(
            "a copy from the host in each step",
            "        count += len(x)\n    loss, finite",
            "        count += len(x)\n        total += torch.zeros(2).to(device)\n    loss, finite",
            "test_gpu.py",
        ),
    ],
    "labhelpers/metrics.py": [
        Wrong(
            "recall where precision belongs",
            "precision_recall_fscore_support(y, pred, labels=codes, zero",
            "precision_recall_fscore_support(pred, y, labels=codes, zero",
            "test_metrics.py -k classification",
        ),
        Wrong(
            "macro-F1 over classes that do not occur",
            "f1[clips > 0].mean()",
            "f1.mean()",
            "test_metrics.py",
        ),
        Wrong(
            "Pearson's correlation for Spearman's",
            "a, b = rankdata(y), rankdata(pred)",
            "a, b = np.asarray(y), np.asarray(pred)",
            "test_metrics.py",
        ),
        Wrong(
            "clips of a track drawn apart",
            "if groups is not None:",
            "if False:",
            "test_metrics.py -k groups",
        ),
        Wrong(
            "an unpaired comparison",
            "mean_b = np.mean(over_seeds(metric, y, b, clips))",
            "mean_b = np.mean(theirs)",
            "test_metrics.py -k paired",
        ),
        Wrong(
            "ahead though a seed disagrees",
            "difference.low > 0 and difference.seeds_ahead == difference.seeds",
            "difference.low > 0",
            "test_metrics.py -k verdict",
        ),
        Wrong(
            "ahead though the interval holds 0",
            "difference.low > 0 and difference.seeds_ahead",
            "difference.seeds_ahead",
            "test_metrics.py -k verdict",
        ),
        Wrong(
            "a deviation of the population",
            "np.std(values, ddof=1)",
            "np.std(values)",
            "test_metrics.py -k seeds",
        ),
    ],
    "labhelpers/baselines.py": [
        Wrong(
            "the SVM fitted on the test clips",
            "machine.fit(features, targets).predict(unseen)",
            "machine.fit(unseen, test.y.numpy()).predict(unseen)",
            "test_baselines.py",
        ),
        Wrong(
            "the majority of the test clips",
            "y = train.y.numpy()\n    if train.task",
            "y = test.y.numpy()\n    if train.task",
            "test_baselines.py",
        ),
        Wrong(
            "descriptors of the mel rows alone",
            'fused = ds.with_features("fused")',
            "fused = ds",
            "test_baselines.py",
        ),
        Wrong(
            "keys named from the wrong tonic",
            "np.roll(template, tonic)",
            "np.roll(template, -tonic)",
            "test_baselines.py",
        ),
        Wrong(
            "a machine that unpickles",
            "allow_pickle=False",
            "allow_pickle=True",
            "test_baselines.py",
        ),
    ],
    "labhelpers/plots.py": [
        Wrong(
            "scatter axes swapped", "ax.scatter(y, pred,", "ax.scatter(pred, y,", "test_plots.py"
        ),
        Wrong(
            "training loss drawn as validation loss",
            'ax.plot(history["epoch"], history["val_loss"]',
            'ax.plot(history["epoch"], history["train_loss"]',
            "test_plots.py",
        ),
        Wrong(
            "a confusion matrix upside down",
            "shares,\n        annot=confusion,",
            "shares.T,\n        annot=confusion.T,",
            "test_plots.py",
        ),
        Wrong(
            "beats at the wrong time",
            "np.asarray(beats) * HOP_LENGTH / SAMPLE_RATE",
            "np.asarray(beats) / SAMPLE_RATE",
            "test_plots.py",
        ),
        Wrong(
            "bars from bottom to top",
            "counts.to_numpy()[::-1], color",
            "counts.to_numpy(), color",
            "test_plots.py",
        ),
        Wrong(
            "figures that are not compared",
            "if digits is not None:",
            "if False:",
            "test_plots.py",
        ),
    ],
    "labhelpers/records.py": [
        Wrong(
            "a record of another corpus taken",
            'if run.corpus["fingerprint"] == corpus.fingerprint:',
            "if True:",
            "test_records.py -k another_state",
        ),
        Wrong(
            "predictions that lose their ranks",
            'float(f"{value:.9g}")',
            'float(f"{value:.3g}")',
            "test_records.py",
        ),
        Wrong(
            "the predictions of another model",
            "self._predictions[model, test_set]",
            "next(iter(self._predictions.values()))",
            "test_records.py",
        ),
        Wrong(
            "a submission with its ids reversed",
            "zip(ids, values, strict=True):\n        numbers",
            "zip(ids[::-1], values, strict=True):\n        numbers",
            "test_records.py -k submission",
        ),
        Wrong(
            "a submission with swapped columns",
            '[f"{value:.{digits}f}" for value in row]',
            '[f"{value:.{digits}f}" for value in row[[0, 2, 1]]]',
            "test_records.py -k submission",
        ),
        Wrong(
            "a submission that lacks clips",
            '"in {folder} but not predicted": wanted - set(ids)',
            '"in {folder} but not predicted": set()',
            "test_records.py -k submission",
        ),
    ],
    "labhelpers/files.py": [
        Wrong(
            "files written in place", "yield partial", "yield path", "test_files.py test_records.py"
        ),
    ],
    "labhelpers/series/predict.py": [
        Wrong(
            "predict with the classes in another order",
            "return list(model.classes) if",
            "return list(model.classes)[::-1] if",
            "test_predict.py",
        ),
        Wrong(
            "predict from an array reshaped instead of transposed",
            "parts = cuts(clip, how.crop)",
            "parts = cuts(clip.reshape(clip.shape[::-1]).T, how.crop)",
            "test_predict.py",
        ),
        Wrong(
            "predict without the model's windows",
            "parts = cuts(clip, how.crop)",
            "parts = cuts(clip, None)",
            "test_predict.py",
        ),
        Wrong("predict with another input", "how.features)\n", '"fused")\n', "test_predict.py"),
    ],
    "labhelpers/series/run.py": [
        Wrong(
            "a rerun that ignores the corpus",
            "own, corpus.fingerprint, upstream",
            "own, upstream",
            "test_report.py -k again",
        ),
        Wrong(
            "a rerun that ignores the package",
            "_hash(source, _package(), own",
            "_hash(source, own",
            "test_report.py -k again",
        ),
        Wrong(
            "a rerun that ignores the records before",
            "corpus.fingerprint, upstream, versions()",
            "corpus.fingerprint, versions()",
            "test_report.py -k again",
        ),
    ],
    "notebooks/05_lstm.ipynb": [
        Wrong(
            "05: normalised by the validation clips",
            "train_val_split(full, 0.2, SEED)",
            "train_val_split(full, 0.2, SEED)[::-1]",
            "notebooks/05_lstm.ipynb",
        ),
        Wrong(
            "05: another input than its name says",
            '"chroma": {"features": "chroma", "beat": False}',
            '"chroma": {"features": "fused", "beat": False}',
            "notebooks/05_lstm.ipynb",
        ),
        Wrong(
            "05: the gates in another order",
            "i, f, g, o = (W",
            "i, f, o, g = (W",
            "notebooks/05_lstm.ipynb",
        ),
        Wrong(
            "05: batches not shuffled by hand",
            "batching.batches(ds, BATCH, shuffle=True)",
            "batching.batches(ds, BATCH)",
            "notebooks/05_lstm.ipynb",
        ),
        Wrong(
            "05: a loss that is a mean of batches",
            "total += loss.item() * len(x)",
            "total += loss.item() * BATCH",
            "notebooks/05_lstm.ipynb",
        ),
        Wrong(
            "05: no augmentation",
            "augment=augment, ema=EMA)",
            "ema=EMA)",
            "notebooks/05_lstm.ipynb",
        ),
        Wrong(
            "05: the raw weights",
            "augment=augment, ema=EMA)",
            "augment=augment)",
            "notebooks/05_lstm.ipynb",
        ),
    ],
    "notebooks/06_evaluation.ipynb": [
        Wrong(
            "06: the SVMs fitted on the test clips",
            "for split in (trains, tests)]",
            "for split in (tests, tests)]",
            "notebooks/06_evaluation.ipynb tests/test_reference.py",
        ),
        Wrong(
            "06: intervals over clips, not tracks",
            "metrics.classification(y, runs, classes, groups=groups)",
            "metrics.classification(y, runs, classes, groups=range(len(y) - 1, -1, -1))",
            "notebooks/06_evaluation.ipynb tests/test_reference.py",
        ),
        Wrong(
            "06: another class than the most frequent",
            "np.bincount(train.y).argmax()",
            "np.bincount(train.y).argmin()",
            "notebooks/06_evaluation.ipynb",
        ),
        Wrong(
            "06: precision over the true clips",
            "tp / np.maximum(tp + fp, 1)",
            "tp / np.maximum(tp + fn, 1)",
            "notebooks/06_evaluation.ipynb",
        ),
        Wrong(
            "06: the mean of the classes for the micro average",
            "micro = [tp.sum() / (tp.sum() + fp.sum()), tp",
            "micro = [(tp / np.maximum(tp + fp, 1)).mean(), tp",
            "notebooks/06_evaluation.ipynb",
        ),
        Wrong(
            "06: the thresholds' split swapped",
            'train.select(step5.facts["validation"])',
            "train",
            "notebooks/06_evaluation.ipynb",
        ),
    ],
    "notebooks/07_cnn.ipynb": [
        Wrong(
            "07: the epochs chosen on the test clips",
            "new_cnn, train, val, seeds=SEEDS",
            "new_cnn, train, test, seeds=SEEDS",
            "notebooks/07_cnn.ipynb",
        ),
        Wrong(
            "07: normalised by the test clips",
            "normalise_from(clips))",
            "normalise_from(test))",
            "notebooks/07_cnn.ipynb",
        ),
        Wrong(
            "07: chosen by a network that learned the validation clips",
            "chooser = made[0]",
            "chooser = made[1]",
            "notebooks/07_cnn.ipynb",
        ),
        Wrong(
            "07: kernels upside down",
            "kernels[:, :, t, f])",
            "kernels[:, :, 2 - t, 2 - f])",
            "notebooks/07_cnn.ipynb",
        ),
        Wrong(
            "07: ReLU before batch norm by hand",
            'h = by_hand["convolution"]',
            'h = by_hand["convolution"].clamp(min=0)',
            "notebooks/07_cnn.ipynb",
        ),
        Wrong(
            "07: the last machine fitted without the validation clips",
            'DescriptorMachine(both, np.concatenate([codes["train"], codes["val"]])',
            'DescriptorMachine(blocks["train"], codes["train"]',
            "notebooks/07_cnn.ipynb tests/test_reference.py",
        ),
    ],
    "notebooks/08_affect_regression.ipynb": [
        Wrong(
            "08: validation and held-out clips swapped",
            "train, val, held_out = held_out_split",
            "train, held_out, val = held_out_split",
            "notebooks/08_affect_regression.ipynb",
        ),
        Wrong(
            "08: the machine learns from the held-out clips",
            "machine = baselines.DescriptorMachine(known_blocks, rest.y.numpy())",
            "machine = baselines.DescriptorMachine(judged_blocks, y)",
            "notebooks/08_affect_regression.ipynb tests/test_reference.py",
        ),
        Wrong(
            "08: errors of every clip with every other",
            "errors = predictions - target  #",
            "errors = predictions - target[:, 0]  #",
            "notebooks/08_affect_regression.ipynb",
        ),
    ],
    "notebooks/09a_transfer_learning.ipynb": [
        Wrong(
            "09a: transfer from random weights",
            "backbone = load_model(checkpoint).backbone  # with the normalisation",
            "backbone = build_backbone(config).normalise_from(ds)  # with",
            "notebooks/09a_transfer_learning.ipynb",
        ),
    ],
    "notebooks/09b_multitask_learning.ipynb": [
        Wrong(
            "09b: scaled the same as equal",
            '"scaled": {"weighting": "scaled"}',
            '"scaled": {"weighting": "equal"}',
            "notebooks/09b_multitask_learning.ipynb",
        ),
    ],
    "notebooks/10_kaggle_submission.ipynb": [
        Wrong(
            "10: judged on the clips it learned from",
            "DescriptorMachine(take(learn), y[learn])",
            "DescriptorMachine(take(judge), y[judge])",
            "notebooks/10_kaggle_submission.ipynb",
        ),
        Wrong(
            "10: solution.txt with its ids reversed",
            "write_submission(path, test.ids, solution",
            "write_submission(path, test.ids[::-1], solution",
            "notebooks/10_kaggle_submission.ipynb tests/test_reference.py",
        ),
    ],
    "tools/reference.py": [
        Wrong(
            "rows that lack pass",
            "for key in [*before, *(key for key in now if key not in before)]:",
            "for key in now.keys() & before.keys():",
            "test_reference.py",
        ),
        Wrong(
            "baselines as tolerant as networks",
            'if not before["baseline"]:',
            "if True:",
            "test_reference.py",
        ),
    ],
    "tools/printed.py": [
        Wrong(
            "printed numbers not compared",
            "return all(nearly(a, b) for a, b in pairs)",
            "return True",
            "test_printed.py",
        ),
    ],
}


def copy_tree(target: Path) -> None:
    """The files that git knows or would add, and the sample."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, done.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)
    sample = ROOT / "data" / "sample"
    if sample.is_dir():
        (target / "data" / "sample").symlink_to(sample.resolve())


def first_failure(tree: Path, near: str) -> str | None:
    """The first test, or cell of a notebook, that fails in a copy of the tree, or None."""
    words, _, chosen = near.partition(" -k ")
    files = [word if "/" in word else f"tests/{word}" for word in words.split()]
    keys = ["-k", chosen.strip("'")] if chosen else []
    arguments = ["-x", "-q", "--no-header", "-rfE", *keys, *files]
    output = tree / "pytest.out"
    path = [str(tree)]
    if near.startswith("notebooks/"):
        path.append(str(tree / "tools" / "quick_trainings"))
    gc.freeze()  # pytest collects garbage at its end, and there is none in the libraries
    child = os.fork()  # with all libraries loaded: they take longer to load than most tests to run
    if child == 0:
        _test(tree, path, arguments, output)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 0:
        return None
    text = output.read_text(encoding="utf-8", errors="replace")
    failed = [line for line in text.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if not failed:
        raise RuntimeError(f"pytest did not get as far as a test:\n{text[-4000:]}")
    return failed[0].split(" - ")[0].split(" ", 1)[1].removeprefix("tests/")


def _test(tree: Path, path: list[str], arguments: list[str], output: Path) -> None:
    """Run pytest in this process, which then ends."""
    stream = os.open(output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    for standard in (1, 2):
        os.dup2(stream, standard)
    os.chdir(tree)
    os.environ.update(PYTHONPATH=os.pathsep.join(path), OMP_NUM_THREADS="1")
    sys.path[:] = path[:1] + [entry for entry in sys.path if entry not in ("", str(ROOT))]
    for name in list(sys.modules):
        if name.partition(".")[0] in ("labhelpers", "tools", "conftest"):
            del sys.modules[name]
    code = 1
    try:
        code = int(pytest.main(arguments))
    finally:
        sys.stdout.flush()
        os._exit(code)


def changed(source: str, change: Wrong, name: str) -> str:
    """The source of a file with the wrong change; a notebook's is to its cells."""
    if not name.endswith(".ipynb"):
        return source.replace(change.right, change.wrong)
    book = json.loads(source)
    for cell in book["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            cell["source"] = text.replace(change.right, change.wrong).splitlines(keepends=True)
    return json.dumps(book)


def chosen(words: list[str]) -> list[tuple[str, Wrong]]:
    """(file, change) of those that have one of the words; all without words."""
    found = []
    for name, changes in MUTATIONS.items():
        for change in changes:
            if not words or any(word in f"{name} {change.what}" for word in words):
                found.append((name, change))
    return found


def unchanged(nears: set[str]) -> list[str]:
    """What has to pass without a change, in order: each file once, and the notebooks whose records
    the chosen ones read."""
    wanted = {near.partition(" -k ")[0] for near in nears}
    series = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    for name in reversed(series):
        if any(f"notebooks/{name}.ipynb" in near for near in wanted):
            code = (ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
            read = [other for other in series if other < name and f'\\"{other}\\"' in code]
            wanted |= {f"notebooks/{other}.ipynb" for other in read}
    files = {near: set(near.split()) for near in wanted}
    return sorted(near for near in wanted if not any(files[near] < more for more in files.values()))


def main(words: list[str]) -> int:
    """Print a line a change; returns how many were not as they should be."""
    changes, survived = chosen(words), 0
    with tempfile.TemporaryDirectory() as folder:
        tree, kept = Path(folder) / "tree", Path(folder) / "reports"
        copy_tree(tree)
        for near in unchanged({change.near for _, change in changes}):
            failure = first_failure(tree, near)
            if failure:
                print(f"without a change, {failure} fails: mend that first", flush=True)
                return 1
        shutil.copytree(tree / "reports", kept)
        for name, change in changes:
            path = tree / name
            source = path.read_text(encoding="utf-8")
            path.write_text(changed(source, change, name), encoding="utf-8")
            start = time.monotonic()
            failure = first_failure(tree, change.near)
            path.write_text(source, encoding="utf-8")
            if change.near.startswith("notebooks/"):  # the next one reads what a right one recorded
                shutil.rmtree(tree / "reports")
                shutil.copytree(kept, tree / "reports")
            survived += failure is None
            said = f"fails {failure}" if failure else "PASSES"
            print(f"{change.what:55s} {said}  ({time.monotonic() - start:.0f} s)", flush=True)
    print(f"{len(changes) - survived} of {len(changes)} wrong changes were noticed")
    return survived


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
