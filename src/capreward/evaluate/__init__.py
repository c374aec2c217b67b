"""Measuring captions and rewards from outside: benchmarks, and agreement with people."""
