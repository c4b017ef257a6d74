"""Settings for every test: one thread (bit-for-bit repeatable, and kind to small machines), no network, no waiting."""

import gc
import os

import pytest
import torch
from hypothesis import settings

import tests.support.unsynced  # noqa: F401

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch.set_num_threads(1)
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=100)
settings.register_profile("nightly", settings.get_profile("suite"), max_examples=1500)
gc.disable()  # until everything is imported: nothing of it is garbage


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("suite" if "not nightly" in config.option.markexpr else "nightly")


def pytest_collection_finish() -> None:
    """What is imported by now stays: no collection need walk its 400,000 objects."""
    gc.collect()
    gc.freeze()
    gc.enable()
