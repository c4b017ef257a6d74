"""What changes a model: objectives, batches, the loss, the training step, supervised methods."""
