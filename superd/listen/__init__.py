"""Opening, adopting and repairing listening sockets: the master and the command line only."""
