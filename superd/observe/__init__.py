"""Log records: made in workers and the master, written by the master only."""
