"""The version of fast-train."""

VERSION = "0.2.0"
