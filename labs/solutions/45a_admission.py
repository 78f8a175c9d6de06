"""Look ahead: lengths are known, so every step to come can be added up."""


def admit(newcomer, running, total_pages, page_tokens):
    """May the newcomer join in this step? Pages only peak just before a request ends."""
    alive = [*running, newcomer]
    for ending in alive:
        steps = ending.left - 1
        pages = 0
        for seat in alive:
            if seat.left > steps:
                tokens = seat.tokens + steps
                pages += -(-tokens // page_tokens)
        if pages > total_pages:
            return False
    return True


# Orca itself reserved the largest size of every request at once:
#     sum(pages of seat.tokens + seat.left - 1 over alive) <= total_pages
# Also safe, and it passes; but short requests give their pages back before the long ones need
# theirs, so it leaves places empty and scores less. The engine's own rule looks at the pages of
# this step and a small reserve, because real lengths are not known: it preempts now and then.
