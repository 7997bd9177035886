"""The resolver: one process that looks up names for workers, whose jails are empty."""
