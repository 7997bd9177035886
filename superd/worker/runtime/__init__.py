"""What all connections of a worker share: the loop, names, heartbeat, lingering sockets."""
