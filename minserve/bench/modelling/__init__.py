"""A cost model fitted to recorded steps, and its error."""
