"""Where keys and values really are, and in which order copies of pages run."""
