"""From a dataset's name to batches: datasets, tokenizers, the corpus of a run, the sampler. No torch."""
