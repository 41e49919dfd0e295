"""Train image classifiers fast."""
