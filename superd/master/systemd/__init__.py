"""Service managers: readiness notification and the descriptor store."""
