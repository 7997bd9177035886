"""Reload and upgrade: from one configuration, or program, to the next."""
