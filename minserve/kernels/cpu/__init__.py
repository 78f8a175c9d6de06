"""A small C++ file of operators for the CPU, compiled on first use."""
