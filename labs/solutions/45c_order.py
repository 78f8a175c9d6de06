"""What is probably left: the prediction's rest, and beyond it as much again as was written."""


def rank(job):
    """Smaller goes first."""
    if job.written < job.predicted:
        return job.predicted - job.written
    # The prediction was wrong. With heavy tails, a job that has lasted long will probably last as
    # long again, so it moves back in the queue the more it writes.
    return job.written
