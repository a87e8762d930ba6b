"""What a checkpoint is worth: losses and perplexities on held-out tokens."""
