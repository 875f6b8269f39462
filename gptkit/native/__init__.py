"""The same operations as in gptkit/model, written in C for the CPU, where torch's own take too many passes.

In: tensors. Out: tensors, to the last bits of fp32 arithmetic what torch computes. `build.py` compiles
`src/*.c` with the machine's C compiler when they are first needed, a second's work, and keeps the result in
the user's cache. Where there is no compiler gptkit computes with torch alone. `functions.py` has the
operations, with their gradients.

Knows nothing of models; gptkit/model/ops.py decides what runs where.
"""

from gptkit.native.build import Library, build_key, library, switched, usable

__all__ = ["Library", "build_key", "library", "switched", "usable"]
