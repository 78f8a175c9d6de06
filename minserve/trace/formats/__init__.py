"""A trace as a file or a table: JSON out and in, data frames, and the Chrome trace format."""
