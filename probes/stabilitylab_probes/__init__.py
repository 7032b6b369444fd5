"""The instruments: one probe a file, found by its file name."""
