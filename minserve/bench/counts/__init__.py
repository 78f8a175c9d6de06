"""What is counted, not timed: launches, bytes, floors, and the time outside operators."""
