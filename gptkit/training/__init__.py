"""From batches to updates: the loop, the loss, the optimizers."""
