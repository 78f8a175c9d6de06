"""One forward pass: a batch goes to the device, its tokens come back. Knows nothing about
requests."""
