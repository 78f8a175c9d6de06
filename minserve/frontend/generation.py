"""One call of `LLM.generate` or `chat`: from prompts to requests, and from requests to outputs.

Steps the shared engine until all requests of the call have ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minserve.engine import Engine
from minserve.frontend.arguments import Errors, params_of_each, priority_of_each
from minserve.frontend.outputs import failure_of, make_output, refused_output
from minserve.frontend.progress import ProgressBar
from minserve.frontend.share import EngineShare
from minserve.inputs.prompts import PromptInput
from minserve.loading import DescribedModel
from minserve.request import InvalidRequestError, Output, Request, SamplingParams

Given = PromptInput | InvalidRequestError
"""A prompt, or the error that refused it."""


@dataclass
class Job:
    """One prompt of the call."""

    name: str
    text: str | None
    token_ids: list[int]
    params: SamplingParams
    priority: int
    requests: list[Request]
    """The prompt's samples, after the engine has accepted it."""
    refused: InvalidRequestError | None = None
    arrival_s: float | None = None
    """If a form is compiled before the request is added: when that began, so that it is part of the
    TTFT."""


def make_jobs(
    model: DescribedModel,
    engine: Engine,
    names: Iterator[str],
    given: Sequence[Given],
    params: SamplingParams | Sequence[SamplingParams] | None,
    priority: int | Sequence[int],
    errors: Errors,
) -> list[Job]:
    """Tokenize the prompts, compile the forms that their answers must have, and check everything
    that can be checked while other threads run the engine.

    Raises InvalidRequestError; with `errors="return"`, only for the arguments of the call.
    """
    each = params_of_each(params, len(given), model.default_sampling_params)
    ranks = priority_of_each(priority, len(given))
    jobs = []
    for prompt, one, rank in zip(given, each, ranks, strict=True):
        job = Job(next(names), None, [], one, rank, [])
        jobs.append(job)
        if isinstance(prompt, InvalidRequestError):
            job.refused = prompt
            continue
        job.text = prompt.text
        try:
            job.token_ids = model.encode(prompt)
            if one.structured_outputs is not None:
                job.arrival_s = engine.clock.now()
                engine.prepare(one)
        except InvalidRequestError as error:
            if errors == "raise":
                raise
            job.refused = error
    return jobs


def complete(
    share: EngineShare, jobs: Sequence[Job], progress: bool, errors: Errors
) -> list[Output]:
    """Run the jobs to their end; returns outputs in their order. With `errors="raise"`, the first
    failure ends the call and is raised."""
    stops = errors == "raise"
    try:
        with share.hold() as engine:
            share.start_run(engine, alone=True)
            for job in jobs:
                if job.refused is None:
                    _add(engine, job, errors)
        requests = [request for job in jobs for request in job.requests]
        _run(share, requests, progress, stops)
        with share.hold() as engine:
            outputs = [_output(engine, job) for job in jobs]
        if stops and (told := failure_of(requests)) is not None:
            raise told
        return outputs
    finally:
        # After an interruption or an error, no request of this call stays in the engine.
        for job in jobs:
            share.leave(job.name, job.requests)
        share.tell()


def _add(engine: Engine, job: Job, errors: Errors) -> None:
    try:
        job.requests = engine.add(
            job.name,
            job.token_ids,
            job.params,
            priority=job.priority,
            arrival_s=job.arrival_s,
        )
    except InvalidRequestError as error:
        if errors == "raise":
            raise
        job.refused = error


def _run(share: EngineShare, requests: Sequence[Request], progress: bool, stops: bool) -> None:
    """Step until these requests have ended; with `stops`, until the first of them fails."""
    left = list(requests)
    num_ended = -1
    with ProgressBar(len(left), progress) as bar:
        while left:
            share.advance()
            if share.num_ended == num_ended and not share.is_idle:
                continue  # No request has ended, so there is nothing to look for.
            num_ended = share.num_ended
            if stops and (told := failure_of(left)) is not None:
                raise told
            before = len(left)
            left = [request for request in left if not request.finished]
            bar.add(before - len(left))


def _output(engine: Engine, job: Job) -> Output:
    if job.refused is None:
        return make_output(engine, job.requests, job.text)
    now_s, count = engine.clock.now(), job.params.n
    return refused_output(job.name, job.text, job.refused, now_s, count)
