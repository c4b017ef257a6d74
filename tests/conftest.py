"""Settings for every test: one thread (bit-for-bit repeatable, and kind to small machines), no network."""

import gc
import os

import torch
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch.set_num_threads(1)
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")


def pytest_collection_finish() -> None:
    """What is imported by now stays: no collection need walk its 400,000 objects."""
    gc.collect()
    gc.freeze()
