"""Seeds from a path of names and numbers: no `seed + i`, so no two streams overlap."""

import hashlib


def derive_seed(*path: int | str) -> int:
    """A 63-bit seed that depends on the whole path and on its types.

    >>> derive_seed(0, "train", 1) != derive_seed(0, "train", "1") != derive_seed(1, "train", 0)
    True
    """
    # A slash inside a name must not read like the separator.
    text = "/".join(
        f"{'str' if isinstance(part, str) else 'int'}:{str(part).replace('~', '~0').replace('/', '~1')}"
        for part in path
    )
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
