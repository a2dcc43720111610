"""Measurements: fastbn beside its rivals, in one run. ``pytest bench`` times operations, modules here whole trainings."""
