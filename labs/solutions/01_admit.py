"""Accept what will be in time: all tokens before the first one of the answer, over the speed."""


def admit(job, queue):
    """May the job come in?"""
    tokens = queue.prompt_tokens + job.prompt_tokens
    return tokens / queue.tokens_per_s <= queue.limit_s


# Long prompts are refused more often than short ones: an answer that needs many tokens is late
# sooner. Where that is unfair, keep a share of the time for them, or let them choose a later limit.
