"""Measures every row of docs/speed.md on this machine: python -m tools.speed

Each contestant runs in its own process, so that none inherits another's settings of torch or of the C
library; they take turns (A B A B), and the median counts. nanoGPT is imported from the folder of `--nanogpt`;
nothing is downloaded.
"""
