"""Structured outputs: masks from a grammar, so that a text has the form that was asked for.

A grammar over characters becomes an automaton over a vocabulary's tokens; in each of its states the
tokens that can continue the text are known (Willard & Louf, arXiv 2307.09702; XGrammar, Dong et
al., arXiv 2411.15100). llguidance does that part. `grammar` compiles a form once per engine,
`vocabulary` tells llguidance the tokens, `mask` follows a request. Knows nothing about batches.
"""

from minserve.sampling.grammar.compiled import Grammars
from minserve.sampling.grammar.mask import GrammarError, GrammarMask

__all__ = ["GrammarError", "GrammarMask", "Grammars"]
