"""minserve: a compact but complete LLM serving engine, made to be looked into."""

__version__ = "0.1.0"
