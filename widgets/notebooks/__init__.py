"""The notebook's own life: where its files lie, its cells out of order, its saved copies."""
