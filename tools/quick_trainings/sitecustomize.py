"""For `make test` and `make mutations`: a training is real for its first three epochs alone.

These are what the notebooks' tests compare of it: they are the same on every processor, while its
end is a draw, and takes most of the time. Python runs this file at its start where its folder is on
PYTHONPATH. What such a run records goes to reports/tests, not among real results.
"""

from functools import wraps

from labhelpers import files, records, training

EPOCHS = 3
own_epoch, own_validate, own_folder = training.train_epoch, training.validate, records.out_folder
skipped, last = [], {}


@wraps(own_epoch)  # notebooks print its source
def train_epoch(state, stream, augment=None):
    epochs = state["history"].epochs
    # A training on one batch, which is learned by heart, is short and done whole.
    skipped[:] = [len(epochs) >= EPOCHS and state["history"].batches > 1]
    return epochs[-1]["train_loss"] if skipped[0] else own_epoch(state, stream, augment)


@wraps(own_validate)
def validate(model, ds, **options):
    if skipped == [True] and id(model) in last:
        skipped.clear()
        return last[id(model)]
    last[id(model)] = own_validate(model, ds, **options)
    return last[id(model)]


def out_folder(corpus, out=None):
    return own_folder(corpus, out or files.project_root() / "reports" / "tests")


training.train_epoch, training.validate, records.out_folder = train_epoch, validate, out_folder
