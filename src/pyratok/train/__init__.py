"""Training: configs, objectives, optimisers, checkpoints and the loop."""
