"""A run on disk: its header, the parts of its series, its lock; whole files or none, and nothing outside the folder."""
