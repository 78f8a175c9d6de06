"""The sides of a race: our engine, and other engines with their own environments."""
