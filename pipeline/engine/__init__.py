"""What trains: augmentation, step, graph, trainer, evaluation, checkpoints."""
