"""What libtpu makes of a program for a TPU."""
