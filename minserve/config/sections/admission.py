"""The section of `EngineConfig` that limits what one request may ask for."""

from __future__ import annotations

from dataclasses import dataclass

from minserve.config.knobs import Section, knob


@dataclass(frozen=True)
class AdmissionConfig(Section):
    """Limits for one request: a request above a limit is refused before any work is done."""

    max_n: int = knob(
        128,
        "Most samples of one prompt (SamplingParams.n).",
        unit="samples",
        trade_off="each sample is a request of its own, queued at once: many delay all others",
        survey="4.2.4",
        at_least=1,
        at_most=1 << 20,
    )
    max_stop_strings: int = knob(
        64,
        "Most stop strings of one request.",
        unit="strings",
        trade_off="every new token's text is searched for each of them",
        at_least=0,
        at_most=1 << 20,
    )
    max_stop_chars: int = knob(
        1024,
        "Longest stop string or bad word.",
        unit="characters",
        trade_off="text that may be the beginning of a stop string is held back",
        at_least=1,
        at_most=1 << 20,
    )
    max_stop_token_ids: int = knob(
        1024,
        "Most stop token ids of one request.",
        unit="tokens",
        trade_off="every new token is compared with each of them",
        at_least=0,
        at_most=1 << 20,
    )
    max_logit_biases: int = knob(
        4096,
        "Most tokens with a logit bias in one request; allowed_token_ids has no such limit.",
        unit="tokens",
        trade_off="they are sent to the device at every step",
        at_least=0,
        at_most=1 << 20,
    )
    max_bad_words: int = knob(
        256,
        "Most bad words of one request.",
        unit="words",
        trade_off="each is compared with the last tokens at every step",
        at_least=0,
        at_most=1 << 20,
    )
    max_grammar_chars: int = knob(
        65_536,
        "Longest schema, expression, list of choices or grammar of structured_outputs.",
        unit="characters",
        trade_off="compiling one takes up to seconds, before the request is queued",
        at_least=1,
        at_most=1 << 24,
    )
    max_logprob_entries: int = knob(
        10_000_000,
        "Most log probabilities that one request may ask for: its prompt's tokens times "
        "prompt_logprobs, and the tokens of its samples times logprobs.",
        unit="entries",
        trade_off="each takes about a hundred bytes until the request's output is dropped",
        at_least=0,
        at_most=1 << 40,
    )
    max_prompt_chars: int | None = knob(
        None,
        "Longest prompt, in characters, checked before it is turned into tokens. None: 32 for "
        "every token of max_model_len.",
        unit="characters",
        trade_off="turning text into tokens takes seconds per million characters",
        survey="4.2.4",
        at_least=1,
    )
