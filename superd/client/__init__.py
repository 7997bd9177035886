"""Clients for services of every kind. Run in the command line; import nothing of the server."""
