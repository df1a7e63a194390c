"""The directory of a run: its names, links past odd paths, and the lock of the one that writes."""
