"""The cases that the GPU suite times: operators, workloads, peers and chapters, as data."""
