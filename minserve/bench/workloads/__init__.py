"""What benchmarks send to an engine: prompts, lengths, arrivals, recorded traces, and model
shapes."""
