"""A cost model fitted to recorded steps, and how far it is off."""
