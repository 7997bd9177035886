"""The `superd` command. Each subcommand imports what it needs when it runs, so it starts fast."""

from superd.cli.main import main

__all__ = ["main"]
