"""The command line: options in, one call, text out; one command a file, found by its file name.

Heavy imports stand inside the commands.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import click

from stabilitylab import __version__
from stabilitylab.cli._patient import be_patient

__all__ = ["main"]

EPILOG = "Run 'stabilitylab COMMAND --help' for the options of a command."


class Commands(click.Group):
    """The commands, with a standard output that may lose its reader."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run one of them."""
        be_patient()
        return super().main(*args, **options)


@click.group(
    cls=Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="stabilitylab")
def main() -> None:
    """Record training runs, and find out why they misbehave.

    'train' pretrains a small ViT on real digits, with instruments; 'analyze' finds gradient spikes, accuracy
    dips and collapse in a run, and says what leads what; 'compare' sets groups of runs side by side. 'probes' lists
    the instruments, 'overhead' what they cost.
    """


for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        main.add_command(getattr(importlib.import_module(f"{__name__}.{_module.name}"), _module.name))
