"""Measurements beside rivals, in one run: ``pytest bench`` times operations, modules here time whole trainings."""
