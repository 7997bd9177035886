"""How blocking handlers run: each in a thread, or in a process that the worker forks for it."""
