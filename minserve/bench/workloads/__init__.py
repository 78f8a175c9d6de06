"""The input of benchmarks: prompts, lengths, arrivals, recorded traces, and model shapes."""
