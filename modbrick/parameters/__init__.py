"""The parameters of a model: their table, their addresses, which are trained."""
