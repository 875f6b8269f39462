"""Training: from an experiment to a run, its loop, loss and optimizers."""
