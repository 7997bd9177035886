"""One module for each way in which a plugin serves, named after the plugin's method."""
