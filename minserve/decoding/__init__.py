"""Decoding algorithms (Miao et al., section 3.1.1): who proposes tokens, and what is asked of them.

`proposer` is the interface of everything that drafts tokens; `speculator` asks it at every step and
checks its answers. The model verifies a draft in one pass (`draft.accepted`).
"""

from minserve.decoding.proposer import Proposer, ProposerError
from minserve.decoding.speculator import Speculator

__all__ = ["Proposer", "ProposerError", "Speculator"]
