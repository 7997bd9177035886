"""The plugin forward over real sockets: data, ends of connections, and costs."""
