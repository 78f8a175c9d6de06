"""What the parts of the GPU suite time: operators, workloads, peers and chapters, as data."""
