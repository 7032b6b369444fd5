"""The one error that is addressed to the user."""

__all__ = ["InputError"]


class InputError(ValueError):
    """What was given cannot be used: the message names it, what was expected, and what is available."""
