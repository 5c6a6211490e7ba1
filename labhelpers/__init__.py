"""labhelpers: the thin package behind the notebook series on music genre and affect recognition.

The path of a clip: audio -> features -> a corpus on disk -> corpora -> datasets -> models -> training ->
records -> evaluation, plots -> report. A module may use those to its left, never those to its right.
"""

import multiprocessing
import os

# Large tensors in huge pages: a CPU otherwise spends up to a third of a training step on page faults.
# torch reads this at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

if not multiprocessing.current_process().name.startswith("Loky"):  # the processes that extract need no torch
    import torch

    # Near-zero activations of an LSTM or a CNN become denormal numbers, which a CPU computes some 4 to 10 times slower.
    # The flag reaches only threads that start after it is set, so it stands before anything else.
    torch.set_flush_denormal(True)

__version__ = "1.0.0"
