"""From a directory or hub name to a model: reads its config and its weights, and checks them."""
