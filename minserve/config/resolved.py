"""`ResolvedConfig`: the configuration that runs, with nothing left to guess.

Also the plain sizes that follow from it, for the rooms that need them. Knows nothing about how they
were settled.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from minserve.config.engine import EngineConfig
from minserve.spec import ModelSpec

CHARS_PER_TOKEN = 32
"""No text has more over its whole length: single tokens (blanks, dashes) do, and English has 4."""


@dataclass(frozen=True)
class ResolvedConfig:
    """The effective configuration. `notes` say which choices were made, in sentences."""

    config: EngineConfig
    model: ModelSpec
    device: torch.device
    dtype: torch.dtype
    max_model_len: int
    max_num_batched_tokens: int
    notes: tuple[str, ...]

    @property
    def itemsize(self) -> int:
        """Bytes per number."""
        return self.dtype.itemsize

    @property
    def block_bytes(self) -> int:
        """Bytes of one page over all layers."""
        return self.config.memory.block_size * self.model.kv_bytes_per_token(self.itemsize)

    @property
    def num_host_slots(self) -> int:
        """Pages that fit into `memory.host_bytes`."""
        return self.config.memory.host_bytes // self.block_bytes

    @property
    def padding(self) -> str:
        """What steps are padded to: `kernels.padding`, or the row counts of `kernels.cuda_graphs`
        ("ladder")."""
        kernels = self.config.kernels
        return "ladder" if kernels.cuda_graphs else kernels.padding

    @property
    def max_graph_rows(self) -> int:
        """Rows of the largest step that is replayed from a graph."""
        return min(self.config.kernels.cuda_graph_max_rows, self.config.scheduling.max_num_seqs)

    @property
    def max_prompt_chars(self) -> int:
        """`admission.max_prompt_chars`, or what the longest prompt can have at most."""
        most = self.config.admission.max_prompt_chars
        return CHARS_PER_TOKEN * self.max_model_len if most is None else most

    @property
    def blocks_per_request(self) -> int:
        """Pages of a request of `max_model_len` tokens."""
        return -(-self.max_model_len // self.config.memory.block_size)
