"""`ResolvedConfig`: the configuration that runs, with every value filled in.

Also the plain sizes derived from it, for the rooms that need them. Knows nothing about how the
values were chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from minserve.config.engine import EngineConfig
from minserve.spec import UNQUANTIZED, ModelSpec, StoragePlan

CHARS_PER_TOKEN = 32
"""No text has more characters per token on average. Single tokens can have more (blanks, dashes);
English has about 4."""


@dataclass(frozen=True)
class ResolvedConfig:
    """The configuration that runs. `notes` are sentences about the choices that were made."""

    config: EngineConfig
    model: ModelSpec
    device: torch.device
    dtype: torch.dtype
    max_model_len: int
    max_num_batched_tokens: int
    notes: tuple[str, ...]
    stored: StoragePlan | None = None
    """`Facts.storage`; see `storage`."""
    asked: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Fields of `config` that were filled in or adjusted: dotted path -> the value that was asked
    for."""

    def filled(self, values: Mapping[str, Any]) -> ResolvedConfig:
        """A copy with more fields filled in, by dotted path."""
        config = self.config.with_values(values)
        return replace(self, config=config, asked={**changes(self.config, config), **self.asked})

    @property
    def storage(self) -> StoragePlan:
        """How each matrix of the model is stored. Raises LookupError if only the name of its format
        is known: formats are looked up above this room."""
        if self.stored is not None:
            return self.stored
        name = self.config.quantization.weight_format
        if name == "dense":
            return UNQUANTIZED
        raise LookupError(
            f"quantization.weight_format={name!r}: only its name is known here; resolve with facts="
            "Facts(storage=...), as load_model and build_virtual_engine do"
        )

    @property
    def itemsize(self) -> int:
        """Bytes per number."""
        return self.dtype.itemsize

    @property
    def block_bytes(self) -> int:
        """Bytes of one page of every cache group: of one page over all layers."""
        return self.config.memory.block_size * self.model.kv_bytes_per_token(self.itemsize)

    @property
    def padding(self) -> str:
        """Kind of padding: `kernels.padding`, or "ladder" for the row counts of
        `kernels.cuda_graphs`."""
        kernels = self.config.kernels
        return "ladder" if kernels.cuda_graphs else kernels.padding

    @property
    def max_graph_rows(self) -> int:
        """Rows of the largest step that is replayed from a graph."""
        return min(self.config.kernels.cuda_graph_max_rows, self.config.scheduling.max_num_seqs)

    @property
    def max_prompt_chars(self) -> int:
        """`admission.max_prompt_chars`, or if that is None, the most characters that a longest
        prompt can have."""
        most = self.config.admission.max_prompt_chars
        return CHARS_PER_TOKEN * self.max_model_len if most is None else most

    @property
    def blocks_per_request(self) -> int:
        """Pages of a request of `max_model_len` tokens."""
        return -(-self.max_model_len // self.config.memory.block_size)


def changes(before: EngineConfig, after: EngineConfig) -> dict[str, Any]:
    """Dotted path -> value in `before`, for the fields whose values differ."""
    then, now = before.to_dict(), after.to_dict()
    return {path: value for path, value in then.items() if value != now[path]}
