"""Plans: the pools of workers that a configuration asks for, and the preflight of its plugins."""
