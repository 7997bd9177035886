"""The master's side of its workers: start, watch, listen to and replace them."""
