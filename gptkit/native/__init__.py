"""Implementations in C of the model's operations and of the optimizer's updates, for CPUs.

Input: tensors. Output: tensors, equal to torch's results up to rounding. `build.py` loads the library that
a wheel has for this processor, or compiles `src/*.c` with the machine's C compiler when they are first
needed, which takes a second, and caches the result. Imports gptkit/model, never the reverse;
gptkit/backend.py installs what is here.

- `ops.py`: single operations with their gradients; `block.py`: whole blocks; `decode.py`: a decoder
- `optim.py`: gradients and optimizer updates
"""

from gptkit.model.ops import Implementation
from gptkit.native import block, decode, ops, optim
from gptkit.native.build import Library, build_key, cache_folder, library, unavailable, usable

__all__ = ["Library", "build_key", "cache_folder", "implementations", "library", "unsupported", "usable"]

# These multiply pairs of bf16 numbers, which few processors do
_WITH_BF16_PRODUCTS: dict[str, tuple[Implementation, ...]] = {
    "Blocks": (block.BLOCKS,),
    "update_muon": optim.MUON,
}
_ALL: dict[str, tuple[Implementation, ...]] = {
    **ops.OPERATIONS,
    "decoder_for": (decode.DECODER,),
    **optim.OPERATIONS,
    **_WITH_BF16_PRODUCTS,
}


def implementations() -> dict[str, tuple[Implementation, ...]]:
    """The implementations that this machine can use, by operation. The first call may compile them."""
    reasons = unsupported()
    return {name: found for name, found in _ALL.items() if not reasons[name]}


def unsupported() -> dict[str, list[str]]:
    """For each operation the reasons why this machine cannot compute it in C."""
    reasons = {name: unavailable() for name in _ALL}
    if usable() and not ops.has_bf16_products():
        for name in _WITH_BF16_PRODUCTS:
            reasons[name].append("the processor does not multiply pairs of bf16 numbers (AVX512_BF16)")
    return reasons
