"""Decoding from logits (Miao et al., section 4.1.1; Li et al., section III): how a token is drawn.

`plan_sampling` turns requests into a SamplingBatch on the host; `Sampler` turns logits and that
batch into tokens on the device. Knows nothing about models, pages or text.
"""

from minserve.sampling.alone import sample_alone
from minserve.sampling.grammar import GrammarError, GrammarMask, Grammars
from minserve.sampling.logprobs import Logprobs, prompt_logprobs, to_token_logprobs
from minserve.sampling.masks import (
    AllowedTokens,
    BadWords,
    LogitsMask,
    TokenMask,
    make_masks,
    pack_tokens,
    prepare_bad_words,
)
from minserve.sampling.plan import check_token_ids, plan_sampling
from minserve.sampling.random import uniforms
from minserve.sampling.sampler import INVALID_TOKEN, SampledTokens, Sampler

__all__ = [
    "INVALID_TOKEN",
    "AllowedTokens",
    "BadWords",
    "GrammarError",
    "GrammarMask",
    "Grammars",
    "LogitsMask",
    "Logprobs",
    "SampledTokens",
    "Sampler",
    "TokenMask",
    "check_token_ids",
    "make_masks",
    "pack_tokens",
    "plan_sampling",
    "prepare_bad_words",
    "prompt_logprobs",
    "sample_alone",
    "to_token_logprobs",
    "uniforms",
]
