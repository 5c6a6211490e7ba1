"""The same checks on a real GPU where there is one, and on a pretended one elsewhere.

A pretended one shows on which device each thing lies and what is copied between them; it cannot
show CUDA's own kernels at work.
"""

import contextlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pretended_gpu
import pytest
import torch

from labhelpers import training
from labhelpers.baselines import row_statistics, svm_baseline
from labhelpers.batches import Augment
from labhelpers.corpora.layout import Corpus
from labhelpers.datasets import SpectrogramDataset, train_val_split
from labhelpers.models import (
    Classifier,
    CNNBackbone,
    LSTMBackbone,
    MultitaskRegressor,
    Regressor,
    load_model,
)
from labhelpers.training import embed, fit, half_type, predict, set_seed, validate

ALL = Augment(time_masks=1, time_width=4, row_masks=1, row_width=8, mixup=0.3, gain=2.0, roll=2)
BOTH_WAYS = {"pooling": "mean+max", "dropout": 0.1, "frames_per_step": 2, "cepstra": 20}


def cnn(ds):
    set_seed(0)
    return Classifier(CNNBackbone(ds.n_features, (4, 8, 8, 8), pools=(2, 2, 2, 2)), ds.classes)


def lstm(ds):
    set_seed(0)
    return Classifier(LSTMBackbone(ds.n_features, 8, 2, True, **BOTH_WAYS), ds.classes)


def lies_on(module, device):
    return {value.device for value in module.state_dict().values()} == {torch.device(device)}


def check_networks_train_and_predict(corpus, folder, device):
    ds = SpectrogramDataset(corpus, "genre")
    train, val = train_val_split(ds, 0.25)
    for make, crop in ((cnn, 24), (lstm, None)):
        model = make(ds).normalise_from(train)
        history = fit(
            model,
            train,
            val,
            epochs=4,
            batch_size=16,
            lr=0.02,
            crop=crop,
            augment=ALL,
            ema=1,
            device=device,
            log=False,
        )
        losses = history.frame()["train_loss"]
        assert np.isfinite(losses).all() and losses.iloc[-1] < losses.iloc[0]
        assert lies_on(model, device)
        # The same weights give the same numbers on the host.
        there = predict(model, val, crop=crop), embed(model.backbone, val)
        model.to("cpu")
        here = predict(model, val, crop=crop), embed(model.backbone, val)
        for a, b in zip(there, here, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-3 if crop else 1e-3)


def check_several_tasks_train(corpus, folder, device):
    affect, genre = SpectrogramDataset(corpus, "affect"), SpectrogramDataset(corpus, "genre")
    for weighting in ("equal", "scaled", "uncertainty"):
        set_seed(0)
        backbone = LSTMBackbone(140, 8)
        model = MultitaskRegressor(backbone, weighting=weighting, genre_classes=genre.classes)
        model.normalise_from(affect).start_from(affect.y)
        fit(model, [affect, genre], epochs=2, device=device, log=False)
        assert predict(model, affect).shape == (60, 3) and lies_on(model, device)
    for loss in ("mse", "l1", "bce"):
        model = Regressor(LSTMBackbone(140, 8), affect.axes, loss).normalise_from(affect)
        fit(model.start_from(affect.y), affect, affect, epochs=2, device=device, log=False)


def check_model_and_split_may_lie_apart(corpus, folder, device):
    """Whichever of them lies there: normalising, validating and predicting bring them together."""
    ds = SpectrogramDataset(corpus, "genre")
    for make in (cnn, lstm):
        means = []
        for model, split in ((make(ds).to(device), ds), (make(ds), ds.to(device)), (make(ds), ds)):
            model.normalise_from(split)
            means.append(model.backbone.mean.cpu().numpy())
            assert np.isfinite(validate(model, split)["val_loss"])
            assert embed(model.backbone, split).shape == (64, model.backbone.out_features)
        for mean in means[:2]:
            np.testing.assert_allclose(mean, means[2], rtol=1e-5)


def check_a_split_on_the_device_is_like_any_other(corpus, folder, device):
    ds = SpectrogramDataset(corpus, "genre", features="mel")
    moved = ds.to(device)
    assert moved.array.device == torch.device(device) and moved.to(device) is moved
    assert moved.array.shape == (64, int(ds.lengths.max()), 128)
    few = torch.tensor([3, 1, 60]).to(device)
    part = moved.subset(few)
    assert part.ids == ds.subset([3, 1, 60]).ids
    expected = row_statistics(ds.subset([3, 1, 60]))
    np.testing.assert_array_equal(row_statistics(part), expected)
    assert svm_baseline(moved, part).shape == (3, 4)


def check_a_loaded_model_predicts_where_it_was_loaded(corpus, folder, device):
    ds = SpectrogramDataset(corpus, "genre", features="mel")
    model = cnn(ds).normalise_from(ds)
    model.save(folder / "m.pt")
    again = load_model(folder / "m.pt", device)
    assert lies_on(again, device) and lies_on(again.backbone, device)
    np.testing.assert_allclose(predict(again, ds), predict(model, ds), atol=1e-3)
    assert isinstance(embed(again.backbone, ds), np.ndarray)


def check_what_a_step_copies_and_waits_for(corpus, folder, device):
    """Each copy from the host, and each number read back, makes a GPU wait: none a step.

    Two small ones come with the moving average, from torch.
    """
    ds = SpectrogramDataset(corpus, "genre")
    own, passed = training.train_epoch, []

    def counted(*arguments):
        before = pretended_gpu.counts.copy()
        loss = own(*arguments)
        passed.append(pretended_gpu.counts - before)
        return loss

    training.train_epoch = counted
    for ema, copies in ((0, 0), (2, 2)):
        passed.clear()
        for batch_size in (16, 8):  # 4 steps, and 8
            fit(
                cnn(ds),
                ds,
                epochs=1,
                batch_size=batch_size,
                crop=24,
                augment=ALL,
                ema=ema,
                device=device,
                log=False,
            )
        four, eight = passed
        assert eight["to the device"] - four["to the device"] <= 4 * copies, passed
        assert eight["waits"] == four["waits"] == 1, passed  # the epoch's loss
    training.train_epoch = own


def check_an_overflow_costs_a_step_not_the_training(corpus, folder, device):
    """In float16 a batch whose loss is infinite is left out; the scaler then takes less."""
    if half_type(torch.device(device)) != torch.float16:
        return
    ds = SpectrogramDataset(corpus, "genre", features="mel")
    model, calls = cnn(ds).normalise_from(ds), []
    own = model.loss

    def odd(outputs, targets):
        calls.append(1)
        return own(outputs, targets) * (float("inf") if len(calls) == 2 else 1.0)

    model.loss = odd
    history = fit(model, ds, epochs=2, batch_size=16, device=device, log=False)
    assert np.isfinite(history.frame()["train_loss"]).all()
    assert all(value.isfinite().all() for value in model.state_dict().values())


CHECKS = {name: check for name, check in globals().items() if name.startswith("check_")}


def run_checks(root, folder, device, names=tuple(CHECKS)):
    """{check: None, or how it failed}."""
    results = {}
    for name in names:
        check = CHECKS[name]
        place = Path(folder) / name
        place.mkdir()
        try:
            check(Corpus(Path(root)), place, device)
            results[name] = None
        except Exception:
            results[name] = traceback.format_exc()[-3000:]
    return results


def main(root, folder, device, capability, names):
    """What the process with the pretended GPU does."""
    save, load = torch.save, torch.load

    def on_host(content):
        unwrapped = {name: value.cpu() for name, value in content["state"].items()}
        return content | {"state": unwrapped}

    torch.save = lambda content, path: save(on_host(content), path)
    torch.load = lambda path, map_location, **more: load(path, map_location="cpu", **more)
    torch.set_num_threads(1)
    with pretended_gpu.pretend(tuple(capability)):
        results = run_checks(root, folder, device, names)
    (Path(folder) / "results.json").write_text(json.dumps(results))


# A T4, which has float16 only; one with bf16; and the second of two. All checks on the first.
FEW = ("check_networks_train_and_predict", "check_model_and_split_may_lie_apart")
PRETENDED = {
    "T4": ("cuda:0", (7, 5), tuple(CHECKS)),
    "bf16": ("cuda:0", (8, 0), FEW[:1]),
    "second": ("cuda:1", (7, 5), FEW),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if torch.version.cuda:
        pytest.skip("no GPU, and this torch is made for CUDA: only one that is not lets us pretend")
    try:
        return pretended_gpu.compile_guard(tmp_path_factory.mktemp("guard"))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no GPU, and no compiler to pretend one ({error})")


@pytest.fixture(scope="module", params=["real"] if torch.cuda.is_available() else PRETENDED)
def results(request, tmp_path_factory, shared_corpus):
    folder = tmp_path_factory.mktemp("gpu")
    if request.param == "real":
        return run_checks(shared_corpus.root, folder, "cuda:0")
    library = request.getfixturevalue("library")
    call = (str(shared_corpus.root), str(folder), *PRETENDED[request.param])
    tests = Path(__file__).parent
    environment = os.environ | {
        "LD_PRELOAD": str(library),
        "PYTHONPATH": f"{tests}:{tests.parent}",
        "LABHELPERS_CACHE": str(folder / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", f"import test_gpu; test_gpu.main(*{call!r})"],
        env=environment,
        capture_output=True,
        text=True,
    )
    with contextlib.suppress(FileNotFoundError):
        return json.loads((folder / "results.json").read_text())
    pytest.fail(done.stderr[-3000:])


@pytest.mark.parametrize("name", CHECKS)
def test_on_a_gpu(results, name):
    if name not in results:
        pytest.skip("done on the first of the pretended ones")
    assert results[name] is None, results[name]
