"""The resolver: one process that looks up clients' names for workers, which sit in empty jails."""
