"""One forward pass: a batch to the device, its tokens back. Knows nothing about requests."""
