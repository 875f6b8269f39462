"""Where randomness comes from: one seed for each (seed, purpose, step).

Nothing in gptkit draws from a generator that lives on from step to step. So there is no generator state to
save, resuming is exact by construction, and drawing more for one purpose (evaluating, sampling) changes
nothing for another.
"""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, purpose: str, step: int = 0) -> int:
    """A 63-bit seed for a generator that serves `purpose` ("init", "batches", "dropout", …) at `step`.

    BLAKE2b of the three, so that neighbouring seeds and steps have unrelated streams.
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
