"""Longest prefix first, and no request overtaken without end."""


def rank(seat, limit):
    """The smallest goes first."""
    if seat.overtaken >= limit:
        return float("-inf")  # equal for all late requests: arrival decides between them
    return -seat.found


# The engine's own order, scheduling.order="lpm", is the last line. Its bound is in seconds
# (scheduling.starvation_limit_s), because a user who waits counts seconds.
