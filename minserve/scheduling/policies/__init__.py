"""The scheduler's policies, a small file each: batching, order, turns, victims,
predicted lengths."""
