"""Value types of the network, such as addresses, and helpers for sockets. For every process."""
