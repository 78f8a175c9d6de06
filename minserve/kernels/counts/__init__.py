"""The cost of operators, counted without a device: launches, and the least bytes they move."""
