"""A run that plays again, at a fraction of its speed, live in a notebook or as frames in a page."""
