"""Copy on write: a page is copied when a token is written into it, and only if others have it."""


def append(sequence, pages):
    """Make room for one more token; return its slot."""
    place, offset = divmod(sequence.length, pages.size)
    if offset == 0:
        # All pages are full, or there is none.
        sequence.table.append(pages.allocate())
    elif pages.owners(sequence.table[place]) > 1:
        shared = sequence.table[place]
        mine = pages.allocate()
        pages.copy(shared, mine)
        pages.release(shared)
        sequence.table[place] = mine
    return sequence.table[place] * pages.size + offset


# Full pages are never copied: nothing is written into them any more. The last owner of a page finds
# that it is alone, and writes in place. The engine knows that a new sample writes at once, so it
# copies the partly filled page when the sample starts: `_copy_partial` in minserve/memory/reuse.py.
