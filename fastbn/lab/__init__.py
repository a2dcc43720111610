"""The laboratory: what is claimed of batch norm, measured, drawn, and said to be so or not."""
