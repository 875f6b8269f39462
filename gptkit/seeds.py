"""Seeds of random generators, one per (seed, purpose, step).

No generator in gptkit lives longer than a step. So there is no generator state to save, resuming is exact by
construction, and drawing more for one purpose (evaluating, sampling) changes nothing for another.
"""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, purpose: str, step: int = 0) -> int:
    """A 63-bit seed for a generator used for `purpose` ("init", "batches", "dropout", …) at `step`.

    It is a BLAKE2b hash of the three, so neighboring seeds and steps give unrelated streams.
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
