"""Trackers that can be told what is recorded, one file each."""
