"""TOML to frozen settings. Runs in the command line and the master; never opens a socket."""
