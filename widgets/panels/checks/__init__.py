"""How a reader's solution is called, judged and talked about. Knows no exercise and no widget."""
