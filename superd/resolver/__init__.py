"""The resolver: one process that looks up names for workers, which sit in empty jails."""
