"""Batch norms of a graph folded away: the search, the rules of the operators, and what they work on."""
