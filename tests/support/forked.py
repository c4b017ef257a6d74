"""multiprocessing's fork server, forked from the tests' own process, where everything is imported by then.

As an interpreter of its own it would import torch, transformers, the project and the tests once more: ten seconds, as
much as many of its runs take together.
"""

import gc
import importlib
import os
import sys
import threading
from collections.abc import Sequence
from multiprocessing import forkserver, resource_tracker, util
from typing import Any

NEEDED = [  # by every run: imported here, where a single file of tests has not done so
    "selfcorrect.runs.run", "selfcorrect.cli", "selfcorrect.parallel.sharding", "safetensors.torch",
    "torch.distributed.checkpoint", "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto", "tests.support.ranks",
    "selfcorrect.report.page", "selfcorrect.analysis",
]  # fmt: skip


def start() -> None:
    """Before any test, as a child inherits what a test has done to the process, and before anything is computed on
    more than one thread, as a fork has none of them, and waits for them.
    """
    for name in NEEDED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a child's first full collection would else walk, and so copy, some 400,000 objects
    resource_tracker.ensure_running()
    module: Any = util
    own = module.spawnv_passfds
    module.spawnv_passfds = _forked
    try:
        forkserver.ensure_running()
    finally:
        module.spawnv_passfds = own


def _forked(path: bytes, arguments: Sequence[Any], passed: Sequence[int]) -> int:
    """Stands in for multiprocessing.util.spawnv_passfds: a fork that runs what Python would be told to by -c."""
    if pid := os.fork():
        return pid
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in map(int, os.listdir("/dev/fd")):  # pytest's, and its worker's way to its controller
            if descriptor not in (0, 1, 2, nowhere, *passed):
                # Not closed: what was made before may write to one, and would write to whatever came to be in its place.
                os.dup2(nowhere, descriptor, inheritable=False)
        sys.stdout, sys.stderr = (open(descriptor, "w", closefd=False) for descriptor in (1, 2))  # noqa: SIM115
        sys.stderr.reconfigure(line_buffering=True)
        server: Any = forkserver
        server._forkserver._lock = threading.Lock()  # held in the process that is forked
        exec(arguments[-1], {})
    finally:
        os._exit(1)
