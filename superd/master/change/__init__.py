"""Changes of the running master: reloads of the configuration, upgrades of the program."""
