"""Reports of what libtpu makes of a program for a TPU."""
