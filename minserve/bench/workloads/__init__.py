"""What is asked of an engine: prompts, lengths, arrivals, recorded traces, and model shapes."""
