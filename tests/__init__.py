"""The tests of gptkit, in folders that mirror the package."""

import os

# One thread per test process, before torch is imported: with several processes at work, threads that wait for
# one another take most of the time. Tests of threads ask for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
