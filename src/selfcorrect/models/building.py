"""What transformers changes for the whole process while it makes a model: one at a time, and put back as it was.

While `from_pretrained` runs, `PreTrainedModel.tie_weights` does nothing and torch's default dtype is the model's, in
every thread. Two of them that overlap put each other's state back, and no model ties its weights again; a model that is
made of a config meanwhile has its head untied. So whatever makes a model does it inside of `building`.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_ONE = threading.RLock()  # one adapter's load makes its base's model within


@contextmanager
def building() -> Iterator[None]:
    """Alone in this process, and without a word of transformers: what it reports at length becomes one line here."""
    from transformers.utils import logging

    with _ONE, without_bars(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.CRITICAL)
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)


@contextmanager
def without_bars() -> Iterator[None]:
    """Without transformers' progress bars; afterwards as the caller has them."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
