"""Benchmark of a training step: cases, their measurement, and another code to compare with."""
