"""The command `bench-throughput`."""
