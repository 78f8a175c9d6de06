"""Reading checkpoints: safetensors (one file, or shards with an index) or GGUF, memory-mapped.

The headers are compared with the spec before anything is allocated. Then each tensor is mapped,
converted and copied before the next one is read, so the peak is one model plus one tensor. Knows
nothing about model families; names and shapes come from `weights.build_weights`.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from minserve.files.json_file import shorten
from minserve.models.errors import ModelError
from minserve.models.loading.checkpoint_files import checkpoint_files
from minserve.models.loading.gguf.tensors import GGUFHeaders
from minserve.models.loading.headers import TensorHeader, read_header
from minserve.models.loading.hub import resolve_model
from minserve.models.weights import (
    DecoderWeights,
    Packing,
    build_weights,
    unpacked,
)
from minserve.process.heap import return_freed
from minserve.quantization.formats import DENSE_PLAN, FormatPlan
from minserve.spec import ModelSpec

_STORED_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# Buffers that old checkpoints contain and that are computed here.
_RECOMPUTED = (".rotary_emb.inv_freq", ".attn.masked_bias", ".attn.bias")
_BASE = "model."
_HEAD, _TABLE = "lm_head.weight", "model.embed_tokens.weight"


def stored_dtype(directory: Path) -> str | None:
    """The number format of a checkpoint's first tensor; None if there is no readable one."""
    try:
        header = read_header(checkpoint_files(directory)[0])
    except ModelError:
        # Errors in the weights are reported when they are loaded.
        return None
    return next((_STORED_DTYPES.get(tensor.dtype) for tensor in header.values()), None)


class CheckpointHeaders:
    """The headers of a checkpoint's tensors, by their names in a causal language model; no
    contents. A `TensorReader` whose tensors are on the meta device.

    If a checkpoint has only the decoder, so that its names lack "model.", it is read as
    transformers reads it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.unread: set[str] = set()
        self.tensors: dict[str, TensorHeader] = {}
        for path in checkpoint_files(directory):
            header = read_header(path)
            for name in header.keys() & self.tensors.keys():
                raise ModelError(
                    f"{directory} stores {shorten(repr(name))} twice, in "
                    f"{self.tensors[name].path.name} and {path.name}: remove one of the two."
                )
            self.tensors.update(header)
        self._prefix = "" if any(name.startswith(_BASE) for name in self.tensors) else _BASE
        self.unread.update(self.tensors)

    def stored_name(self, name: str) -> str:
        """The name in the files for a tensor of a causal language model."""
        return name.removeprefix(self._prefix)

    def has(self, name: str) -> bool:
        """Whether the checkpoint stores a tensor with this name."""
        return self.stored_name(name) in self.tensors

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor without memory; its header is compared with the expected shape first."""
        stored = self.stored_name(name)
        tensor = self.tensors.get(stored)
        if tensor is None:
            raise ModelError(
                f"{self.directory} has no tensor {stored!r}, which its config.json calls for: "
                "the checkpoint is incomplete, or config.json belongs to another model."
            )
        if tensor.shape != shape:
            raise ModelError(
                f"tensor {stored!r} in {tensor.path} has shape {tensor.shape}, and config.json "
                f"calls for {shape}: one of the two belongs to another model."
            )
        if tensor.dtype not in _STORED_DTYPES:
            raise ModelError(
                f"tensor {stored!r} in {tensor.path} is stored as {shorten(tensor.dtype)}"
                f": only unquantized weights ({', '.join(_STORED_DTYPES)}) are read; load the "
                "original checkpoint."
            )
        self.unread.discard(stored)
        return torch.empty(shape, dtype=getattr(torch, _STORED_DTYPES[tensor.dtype]), device="meta")

    @property
    def nbytes(self) -> int:
        """Bytes of the checkpoint's files."""
        paths = {tensor.path for tensor in self.tensors.values()}
        return sum(path.stat().st_size for path in paths)

    def open(self, spec: ModelSpec, progress: tqdm[Any] | None = None) -> Checkpoint:
        """The tensors with their contents; a context manager."""
        return Checkpoint(self, progress)

    def check(self, spec: ModelSpec) -> None:
        """Raise ModelError unless the tensors are exactly those of a spec, each with its shape.

        Runs the loading code on the meta device, where nothing is allocated.
        """
        build_weights(spec, self, torch.float32, torch.device("meta"))
        if spec.tie_embeddings and self.has(_HEAD) and self.has(_TABLE):
            # A tied model may still store its head.
            self.read(_HEAD, (spec.vocab_size, spec.hidden_size))
        left = sorted(name for name in self.unread if not name.endswith(_RECOMPUTED))
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            names = ", ".join(shorten(repr(name)) for name in left[:3])
            raise ModelError(
                f"{self.directory} stores {names}{more}, for which its config.json has no place: "
                "the two belong to different models, or the model has parts this decoder does not."
            )


class Checkpoint:
    """Opened safetensors files as a `TensorReader`; their headers were checked before. A
    context manager."""

    def __init__(self, headers: CheckpointHeaders, progress: tqdm[Any] | None = None) -> None:
        self.headers = headers
        self._progress = progress
        self._stack = ExitStack()
        self._files: dict[Path, Any] = {}

    def __enter__(self) -> Checkpoint:
        with ExitStack() as opened:
            for path in sorted({tensor.path for tensor in self.headers.tensors.values()}):
                try:
                    file = safe_open(path, framework="pt", device="cpu")
                    self._files[path] = opened.enter_context(file)
                except (SafetensorError, OSError) as error:
                    raise _unreadable(path, error) from error
            self._stack = opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._files.clear()
        self._stack.close()

    def has(self, name: str) -> bool:
        """Whether the checkpoint stores a tensor with this name."""
        return self.headers.has(name)

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The stored tensor, mapped from the file."""
        self.headers.read(name, shape)
        tensor = self._tensor(name)
        if tuple(tensor.shape) != shape:
            path = self.headers.tensors[self.headers.stored_name(name)].path
            raise ModelError(f"{path} changed while it was read: load the model again.")
        if self._progress is not None:
            self._progress.update(tensor.nbytes)
        return tensor

    def _tensor(self, name: str) -> Tensor:
        stored = self.headers.stored_name(name)
        path = self.headers.tensors[stored].path
        try:
            tensor: Tensor = self._files[path].get_tensor(stored)
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, error) from error
        return tensor

    def check_tied_head(self) -> None:
        """Refuse a tied model that also stores its head, if the head differs from the
        embedding table."""
        if not (self.has(_HEAD) and self.has(_TABLE)):
            return
        head, table = self._tensor(_HEAD), self._tensor(_TABLE)
        if head.dtype != table.dtype or not torch.equal(head, table):
            raise ModelError(
                f"config.json in {self.headers.directory} says tie_word_embeddings, but {_HEAD!r} "
                f"and {self.headers.stored_name(_TABLE)!r} differ: set tie_word_embeddings to "
                "false in config.json."
            )


def _unreadable(path: Path, error: Exception) -> ModelError:
    return ModelError(
        f"{path} is not a readable safetensors file ({error}): download or copy it again."
    )


def load_weights(
    model: str | Path,
    spec: ModelSpec,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    progress: bool = True,
    plan: FormatPlan = DENSE_PLAN,
    packing: Packing = unpacked,
) -> DecoderWeights:
    """Load a checkpoint's weights in `dtype` on `device`: see `build_weights`.

    `progress` shows a bar on standard error if loading takes longer than two seconds. Raises
    ModelError, naming the tensor, if one is missing, misshapen, quantized or unexpected, and if the
    directory holds no safetensors.
    """
    path = resolve_model(model)
    headers = GGUFHeaders(path) if path.is_file() else CheckpointHeaders(path)
    headers.check(spec)
    bar = tqdm(
        total=headers.nbytes,
        desc="Loading weights",
        unit="B",
        unit_scale=True,
        delay=2.0,
        leave=False,
        disable=not progress,
    )
    with bar, headers.open(spec, bar) as checkpoint:
        weights = build_weights(spec, checkpoint, dtype, torch.device(device), plan, packing)
        if spec.tie_embeddings:
            checkpoint.check_tied_head()
    return_freed()
    return weights
