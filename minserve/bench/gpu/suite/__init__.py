"""The parts of the GPU suite, one file each with a `run`."""
