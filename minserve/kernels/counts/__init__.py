"""What operators cost, counted without a device: launches, and the least bytes they move."""
