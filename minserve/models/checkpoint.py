"""Reading safetensors checkpoints: one file or shards with an index, memory-mapped.

Each tensor is mapped, converted and copied before the next is touched, so the peak is one model
plus one tensor. Pickle checkpoints are refused: opening one runs whatever code it carries. Knows
nothing about model families; names and shapes come from `weights.build_weights`.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from minserve.kernels.base import PanelShape
from minserve.models.errors import ModelError
from minserve.models.hub import resolve_model_dir
from minserve.models.weights import DecoderWeights, build_weights
from minserve.spec import ModelSpec

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_STORED_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# Buffers that old checkpoints carry and that are computed here.
_RECOMPUTED = (".rotary_emb.inv_freq", ".attn.masked_bias", ".attn.bias")


def checkpoint_files(directory: Path) -> tuple[Path, ...]:
    """The safetensors files that make up a checkpoint, in the order of their names.

    Raises ModelError when there are none, when only pickle files exist, or shards are missing.
    """
    index = directory / _INDEX
    if index.is_file():
        return _sharded(directory, index)
    if (directory / _SINGLE).is_file():
        return (directory / _SINGLE,)
    found = sorted(directory.glob("*.safetensors"))
    if len(found) == 1:
        return (found[0],)
    if found:
        raise ModelError(
            f"{directory} has {len(found)} .safetensors files but no {_INDEX} that says which "
            "belong together: save the model again with save_pretrained."
        )
    pickles = sorted(
        path.name for suffix in ("bin", "pt", "pth") for path in directory.glob(f"*.{suffix}")
    )
    if pickles:
        raise ModelError(
            f"{directory} has its weights only as pickle ({pickles[0]}), which can run any code "
            "when it is opened and is never read here. If you trust it, convert it once: "
            "AutoModelForCausalLM.from_pretrained(directory).save_pretrained(new_directory) with "
            "transformers writes safetensors."
        )
    raise ModelError(f"{directory} has no .safetensors weights.")


def _sharded(directory: Path, index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} is not a safetensors index: {error!r}") from error
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(f"{index} names {name!r}: expected .safetensors files beside it.")
        if not (directory / name).is_file():
            raise ModelError(
                f"{directory} lacks {name}, one of the {len(names)} shards in {index.name}: "
                "download or copy it again."
            )
    return tuple(directory / name for name in names)


def stored_dtype(directory: Path) -> str | None:
    """The number format of a checkpoint's first tensor; None when there is no readable one."""
    try:
        with safe_open(checkpoint_files(directory)[0], framework="pt") as opened:
            name = next(iter(opened.keys()))
            return _STORED_DTYPES.get(opened.get_slice(name).get_dtype())
    except (ModelError, SafetensorError, StopIteration):
        # Whatever is wrong with the weights is said when they are loaded.
        return None


class Checkpoint:
    """Opened safetensors files as a `TensorReader`. A context manager."""

    def __init__(self, directory: Path, progress: tqdm[Any] | None = None) -> None:
        self.directory = directory
        self.unread: set[str] = set()
        self._progress = progress
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        for path in checkpoint_files(directory):
            try:
                opened = self._stack.enter_context(safe_open(path, framework="pt", device="cpu"))
            except SafetensorError as error:
                raise ModelError(_unreadable(path, error)) from error
            self._files.update(dict.fromkeys(opened.keys(), opened))
        self.unread.update(self._files)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def has(self, name: str) -> bool:
        """Whether the checkpoint stores a tensor of this name."""
        return name in self._files

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The stored tensor, mapped from the file."""
        if name not in self._files:
            raise ModelError(
                f"{self.directory} has no tensor {name!r}, which its config.json calls for: the "
                "checkpoint is incomplete, or config.json belongs to another model."
            )
        view = self._files[name].get_slice(name)
        if tuple(view.get_shape()) != shape:
            raise ModelError(
                f"tensor {name!r} in {self.directory} has shape {tuple(view.get_shape())}, and "
                f"config.json calls for {shape}: one of the two belongs to another model."
            )
        if view.get_dtype() not in _STORED_DTYPES:
            raise ModelError(
                f"tensor {name!r} in {self.directory} is stored as {view.get_dtype()}: only "
                f"unquantized weights ({', '.join(_STORED_DTYPES)}) are read; load the original "
                "checkpoint."
            )
        self.unread.discard(name)
        tensor: Tensor = self._files[name].get_tensor(name)
        if self._progress is not None:
            self._progress.update(tensor.nbytes)
        return tensor

    def check_tied_head(self) -> None:
        """A tied model may store its head all the same; refuse it when it is another matrix."""
        head, table = "lm_head.weight", "model.embed_tokens.weight"
        if not (self.has(head) and self.has(table)):
            return
        self.unread.discard(head)
        if not torch.equal(
            self._files[head].get_tensor(head), self._files[table].get_tensor(table)
        ):
            raise ModelError(
                f"config.json in {self.directory} says tie_word_embeddings, but {head!r} and "
                f"{table!r} differ: set tie_word_embeddings to false in config.json."
            )

    def check_all_read(self) -> None:
        """Refuse tensors that the spec has no place for: they would have changed the output."""
        left = sorted(name for name in self.unread if not name.endswith(_RECOMPUTED))
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            raise ModelError(
                f"{self.directory} stores {', '.join(map(repr, left[:3]))}{more}, for which its "
                "config.json has no place: the two belong to different models, or the model has "
                "parts this decoder does not."
            )


def _unreadable(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            return f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` there."
    return f"{path} is not a readable safetensors file ({error}): download or copy it again."


def load_weights(
    model: str | Path,
    spec: ModelSpec,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    progress: bool = True,
    panel: PanelShape | None = None,
) -> DecoderWeights:
    """Load a checkpoint's weights in `dtype` on `device`, packed where `panel` says how.

    `progress` shows a bar on standard error when loading takes longer than two seconds.
    Raises ModelError, naming the tensor, when one is missing, misshapen, quantized or unexpected,
    and when the directory holds no safetensors.
    """
    directory = resolve_model_dir(model)
    total = sum(path.stat().st_size for path in checkpoint_files(directory))
    bar = tqdm(
        total=total,
        desc="Loading weights",
        unit="B",
        unit_scale=True,
        delay=2.0,
        leave=False,
        disable=not progress,
    )
    with bar, Checkpoint(directory, bar) as checkpoint:
        weights = build_weights(spec, checkpoint, dtype, torch.device(device), panel)
        if spec.tie_embeddings:
            checkpoint.check_tied_head()
        checkpoint.check_all_read()
    return weights
