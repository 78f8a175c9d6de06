"""TAB completion: what can be completed, and how each shell asks for it."""
