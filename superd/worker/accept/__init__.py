"""From a listening socket to a handler: accept, admit, dispatch or refuse."""
