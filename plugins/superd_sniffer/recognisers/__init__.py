"""One module for each family of protocols, and the guess that tries them."""
