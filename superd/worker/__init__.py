"""The confined process that talks to clients. Nothing here runs as root once it accepts."""
