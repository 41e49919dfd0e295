"""What is measured, and how: `bench-throughput`. It imports the library and copies none of it."""
