"""The choices of the scheduler, a small file each: batching, order, turns, victims."""
