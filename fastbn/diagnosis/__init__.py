"""What is wrong with the batch norms of a model, and the way out."""
