"""Files of text to prepared data sets: sources, reading, encoding by many processes."""
