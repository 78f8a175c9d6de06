"""What the reader is asked: a prediction, an estimate, a recap; scored once, kept over restarts."""
