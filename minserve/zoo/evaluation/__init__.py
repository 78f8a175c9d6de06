"""How good the zoo's models are: bits per byte, agreement, and what they write."""
