"""Preloaded last by the fork server of tests/support/runs.py: what is imported by then is nothing for a child to collect.

A child's first full collection would else walk, and so copy, some 400,000 objects: 0.4 s, as long as what it does.
"""

import gc

gc.collect()
gc.freeze()
