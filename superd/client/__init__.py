"""Clients for services of every kind. Runs in the command line, and knows nothing of the server."""
