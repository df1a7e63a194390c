"""A compiled step: how it is compiled for machines that are not there, and what its text says."""
