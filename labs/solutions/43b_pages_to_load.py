"""Try every number of pages: loading from the front, computing what is left in one step."""


def pages_to_load(offer):
    """How many of the history's first pages to load; the rest is computed with the question."""

    def seconds(pages):
        left = offer.question + (offer.pages - pages) * offer.page_tokens
        return pages * offer.load_s + offer.compute_s(left)

    return min(range(offer.pages + 1), key=seconds)


# A step reads all weights, for one token or for a hundred: below the roofline's ridge, computing
# the history's last pages takes no extra time, and loading them does. Only the front can be loaded:
# keys and values of a page depend on all tokens before it, so the computed pages come last.
