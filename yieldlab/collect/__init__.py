"""How do the history and the present of the feed come into the store? The layers above import its modules by name."""
