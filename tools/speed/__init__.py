"""Measures every row of docs/speed.md on this machine: python -m tools.speed

Each contestant runs in a process of its own, so that none gets another's settings of torch or of the C
library; they take turns (A B A B), and what counts is the median. nanoGPT is imported from the folder that
`--nanogpt` names; nothing is downloaded.
"""
