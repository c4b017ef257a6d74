"""The scripts of benchmarks/, for the one that needs the public data."""

from tests.benchmarks.conftest import script

__all__ = ["script"]
