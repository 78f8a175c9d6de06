"""An engine with its own thread: the thread's loop, and the objects it shares with other
threads."""
