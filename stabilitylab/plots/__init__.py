"""Plots: from runs to pictures, one file each."""
