"""From a directory or hub name to a model: its config, its weights, and what is wrong with them."""
