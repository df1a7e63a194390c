"""Model families, each as one format: a table of rows and a translation of the config."""
