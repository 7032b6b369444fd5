"""The training harness: from a configuration to a run."""
