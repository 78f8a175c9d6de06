"""An engine on a thread of its own: the thread's loop, and what it shares with other threads."""
