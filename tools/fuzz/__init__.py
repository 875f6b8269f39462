"""`python -m tools.fuzz`: runs gptkit with hostile files, names and command lines."""
