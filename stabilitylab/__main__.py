"""``python -m stabilitylab`` is the command ``stabilitylab``."""

from stabilitylab.cli import main

main(prog_name="stabilitylab")
