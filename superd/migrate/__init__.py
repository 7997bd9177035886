"""Converts the configuration of inetd and xinetd to superd's."""
