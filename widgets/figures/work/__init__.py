"""What is computed: rows, launches, repeated work, and the limits of a machine."""
