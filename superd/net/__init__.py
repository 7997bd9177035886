"""Addresses and sockets. Runs in every process."""
