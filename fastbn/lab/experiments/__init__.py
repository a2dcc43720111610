"""One file an experiment: how it measures, what it claims, and its picture."""
