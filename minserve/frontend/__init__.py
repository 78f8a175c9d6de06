"""Between callers and an engine: a shared engine, a thread that owns one, and outputs."""
