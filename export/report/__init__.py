"""The report of ``python -m export``: as text, as one HTML page, and the listing of a model."""
