"""superd: a superserver whose services are plugins."""

__version__ = "0.1.0"
