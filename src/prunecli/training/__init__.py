"""Training: one loop for scratch twins, retraining with fixed masks, and distillation."""
