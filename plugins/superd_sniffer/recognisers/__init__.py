"""Recognisers of protocols: one module for each family, and `guess`, which tries all of them."""
