"""What a reader is asked and what is kept of the answers."""
