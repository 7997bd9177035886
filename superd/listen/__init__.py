"""Opens, adopts and repairs listening sockets. Used by the master and the command line only."""
