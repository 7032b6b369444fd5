"""Pure functions of arrays: numpy and scipy only."""
