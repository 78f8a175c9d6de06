"""The memory that holds keys and values, and the order in which copies of pages run."""
