"""The tiny model of tests/run, for the commands."""

from tests.run.conftest import lucky, model

__all__ = ["lucky", "model"]
