"""The weights of a GGUF file under the names of a Hugging Face checkpoint, as torch has them.

One tensor at a time: mapped, its blocks computed, its rows put in order, and copied by the caller
before the next is read. Knows nothing about model families beyond their entry in `ARCHITECTURES`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from minserve.files.gguf_file import GGUFTensor, mapped
from minserve.files.json_file import FileError, shorten
from minserve.models.errors import ModelError
from minserve.models.loading.gguf.blocks import STORED, check_kind, read_numbers
from minserve.models.loading.gguf.config import ROPE_FACTORS, architecture_of, read_file
from minserve.models.weights import build_weights
from minserve.spec import ModelSpec

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


def gguf_name(name: str) -> str:
    """The name in a GGUF file of a tensor of a Hugging Face checkpoint."""
    stem, _, suffix = name.rpartition(".")
    if layer := _LAYER.fullmatch(stem):
        own = _LAYER_NAMES.get(layer[2])
        return name if own is None else f"blk.{layer[1]}.{own}.{suffix}"
    return f"{_NAMES.get(stem, stem)}.{suffix}"


def apart(stored: Tensor, heads: int) -> Tensor:
    """Rows of a query or key projection as Hugging Face orders them: of each head, first the first
    rows of all rotary pairs, then the second ones. llama.cpp has the two rows of a pair adjacent.
    """
    rows, *rest = stored.shape
    return stored.view(heads, rows // heads // 2, 2, *rest).transpose(1, 2).reshape(stored.shape)


class GGUFHeaders:
    """The tensor table of a file, by the names of a Hugging Face checkpoint; no contents. A
    `TensorReader` whose tensors are on the meta device."""

    def __init__(self, path: Path) -> None:
        self.file = read_file(path)
        self.permuted = architecture_of(self.file).permuted
        self.unread = set(self.file.tensors) - {ROPE_FACTORS}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in the file."""
        return sum(tensor.nbytes for tensor in self.file.tensors.values())

    def has(self, name: str) -> bool:
        """Whether the file stores this tensor."""
        return gguf_name(name) in self.file.tensors

    def entry(self, name: str, shape: tuple[int, ...]) -> GGUFTensor:
        """A tensor's entry. Raises ModelError unless it has this shape and a readable format."""
        stored, path = gguf_name(name), self.file.path
        tensor = self.file.tensors.get(stored)
        if tensor is None:
            raise ModelError(
                f"{path} has no tensor {stored!r}, which its metadata calls for: the file is "
                "incomplete, or made by a converter that names tensors in its own way."
            )
        if tensor.shape != shape:
            raise ModelError(
                f"tensor {stored!r} in {path} has shape {tensor.shape}, and the metadata calls for "
                f"{shape}: convert the model again."
            )
        check_kind(path, tensor)
        return tensor

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor without memory; its entry is compared with the expected shape first."""
        tensor = self.entry(name, shape)
        self.unread.discard(tensor.name)
        dtype = STORED.get(tensor.kind.name, torch.float32)
        return torch.empty(shape, dtype=dtype, device="meta")

    def check(self, spec: ModelSpec) -> None:
        """Raise ModelError unless the tensors are exactly those of a spec, each with its shape."""
        build_weights(spec, self, torch.float32, torch.device("meta"))
        if left := sorted(self.unread):
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            names = ", ".join(shorten(repr(name)) for name in left[:3])
            raise ModelError(
                f"{self.file.path} stores {names}{more}, for which its metadata has no place: the "
                "model has parts that this decoder does not have."
            )

    def open(self, spec: ModelSpec, progress: tqdm[Any] | None = None) -> GGUFTensors:
        """The tensors with their contents; a context manager."""
        return GGUFTensors(self, spec, progress)


class GGUFTensors:
    """A mapped file as a `TensorReader`; its header was checked before. A context manager."""

    def __init__(self, headers: GGUFHeaders, spec: ModelSpec, progress: tqdm[Any] | None) -> None:
        self._headers = headers
        self._spec = spec
        self._progress = progress
        self._content: Any = None

    def __enter__(self) -> GGUFTensors:
        try:
            with mapped(self._headers.file.path) as content:
                self._content = content
        except FileError as error:
            raise ModelError(str(error)) from None
        return self

    def __exit__(self, *error: object) -> None:
        self._content = None

    def has(self, name: str) -> bool:
        """Whether the file stores this tensor."""
        return self._headers.has(name)

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor's numbers, its rows in Hugging Face's order."""
        tensor, path = self._headers.entry(name, shape), self._headers.file.path
        if tensor.offset + tensor.nbytes > len(self._content):
            raise ModelError(f"{path} changed while it was read: load the model again.")
        numbers = read_numbers(path, self._content, tensor)
        if self._progress is not None:
            self._progress.update(tensor.nbytes)
        if not self._headers.permuted or ".self_attn." not in name:
            return numbers
        heads = self._spec.layers[0].mixer.heads
        rotated = {"q_proj": heads.num_heads, "k_proj": heads.num_kv_heads}
        projection = name.split(".")[-2]
        return apart(numbers, rotated[projection]) if projection in rotated else numbers

    def check_tied_head(self) -> None:
        """Nothing: a GGUF file with a head is not tied."""
