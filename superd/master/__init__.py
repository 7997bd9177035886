"""The privileged process: binds, forks, signals, reaps, logs. It is kept simple: it never reads a
byte from a client, never imports a plugin, and has one thread."""
