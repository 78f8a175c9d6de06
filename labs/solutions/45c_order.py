"""What is probably left: the prediction's rest, and beyond it as much again as was written."""


def rank(job):
    """Smaller goes first."""
    if job.written < job.predicted:
        return job.predicted - job.written
    # The prediction is void. With heavy tails, a job that has lasted long will probably last long:
    # expect about as much again, and let it age out of the front of the queue.
    return job.written
