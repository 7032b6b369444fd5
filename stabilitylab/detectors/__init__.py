"""Detectors: from a series to events, one file each."""
