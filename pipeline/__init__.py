"""Training: configuration, models, loaders, the step, the loop, evaluation and checkpoints."""
