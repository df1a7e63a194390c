"""Formats of source files: what a file is, its bytes without compression, the records in it."""
