"""The command line ``python -m fastbn``: a file for each command."""
