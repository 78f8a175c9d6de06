"""One knob, one quantity: a run of the engine at every value, and where it turns."""
