"""What `benchmarks.step_lab` measures: each way to a faster step, alone, beside the step without it."""
