"""Kinds of customized bricks, one a file; what they have in common is in `kind.py`."""
