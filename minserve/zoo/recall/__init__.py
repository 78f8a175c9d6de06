"""A small model that must look far back: its vocabulary, its tasks, its training and its scores."""
