"""When what happens: requests, slots, tokens and stages over a run."""
