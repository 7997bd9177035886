"""The forward plugin over real sockets: what passes, what ends, and what it costs."""
