"""The kernel benchmark: cases, contenders, and what is measured of them.

`scripts/benchmark_kernels.py` is its command line; docs/kernels.md says how to read the results.
"""
