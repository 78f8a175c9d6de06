"""Best fit: walk over the free pages once, and keep the tightest hole that is large enough."""


def place(free, need):
    """First page of the smallest hole of at least `need` neighbouring free pages; None without."""
    best = None
    at = 0
    while at < len(free):
        end = at + 1
        while end < len(free) and free[end] == free[end - 1] + 1:
            end += 1
        size = end - at
        if size >= need and (best is None or size < best[0]):
            best = (size, free[at])
        at = end
    return None if best is None else best[1]


# Best fit keeps large holes whole for those who need them, and fills the pool with slivers that
# nobody can use. First fit is as good on many workloads and asks for less. No rule of placing
# removes the holes: that takes pages which need not be neighbours.
