"""What the training loop is made of: an epoch's updates, validation, average, checkpoints, log, stopping."""
