"""A run's settings and recipes, as plain data."""
