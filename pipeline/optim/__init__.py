"""Optimizers, averages of weights, schedules."""
