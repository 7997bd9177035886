"""Turning the configurations of inetd and xinetd into superd's."""
