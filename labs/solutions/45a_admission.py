"""Look ahead: lengths are known, so every step to come can be added up."""


def admit(newcomer, running, total_pages, page_tokens):
    """May the newcomer join in this step? Use of pages peaks just before a request ends."""
    requests = [*running, newcomer]
    for ending in requests:
        steps = ending.left - 1
        pages = 0
        for request in requests:
            if request.left > steps:
                tokens = request.tokens + steps
                pages += -(-tokens // page_tokens)
        if pages > total_pages:
            return False
    return True


# Orca itself reserved the largest size of every request at once:
#     sum(pages of r.tokens + r.left - 1 over all requests) <= total_pages
# This is safe too, and it passes. But short requests give their pages back before the long ones
# need theirs, so it leaves slots empty and scores less. The engine's own rule looks at the pages
# of this step and a small reserve, because real lengths are not known: it preempts now and then.
