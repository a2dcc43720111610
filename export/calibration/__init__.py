"""Statistics of batch norms estimated anew from data."""
