"""The largest chunk that meets the target, found by halving: a step's time only grows with it."""


def chunk(step):
    """Tokens of the long prompt that this step takes."""
    if not step.decoding:
        return step.prompt_left  # no chat is writing, so no chat can be frozen
    if step.estimate_s(step.prompt_left) <= step.target_s:
        return step.prompt_left
    fits, too_many = 0, step.prompt_left
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if step.estimate_s(middle) <= step.target_s:
            fits = middle
        else:
            too_many = middle
    # Late or not, the prompt has to advance: with an empty chunk it would never end.
    return min(max(fits, step.at_least), step.prompt_left)
