"""What a person types. Imports what a command needs when it runs, so that each starts fast."""

from superd.cli.main import main

__all__ = ["main"]
