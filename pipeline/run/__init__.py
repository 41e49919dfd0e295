"""A run as a call: its plan, its folder, its record."""
