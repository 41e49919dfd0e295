"""What `benchmarks.lab.cli` measures: each way to a faster step, alone, beside the step without it."""
