"""From a GGUF file to a directory in the Hugging Face layout, in float16, that transformers reads.

Whatever loads a GGUF file directly (`models.loading.gguf`, `tokenizer.gguf`) reads it here too, so
both ways give the same model. Knows nothing about where the file came from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from minserve.files.json_file import shorten
from minserve.models import load_spec
from minserve.models.loading.gguf.config import gguf_config, read_file
from minserve.models.loading.gguf.tensors import GGUFHeaders
from minserve.models.weights import TensorReader, build_weights
from minserve.tokenizer.gguf import read_gguf_tokenizer
from minserve.zoo.fetching import FetchError

_META = torch.device("meta")


class _Keeping:
    """A `TensorReader` that keeps a float16 copy of everything that is read."""

    def __init__(self, reader: TensorReader) -> None:
        self.kept: dict[str, Tensor] = {}
        self._reader = reader

    def has(self, name: str) -> bool:
        """Whether the tensor exists."""
        return self._reader.has(name)

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor; kept under its name."""
        numbers = self._reader.read(name, shape)
        self.kept[name] = numbers.to(torch.float16, copy=True).contiguous()
        return numbers


def convert(gguf: Path, directory: Path, sampling: Mapping[str, Any]) -> None:
    """Write a Llama's GGUF file as a model directory; `sampling` joins its generation_config.json.

    Raises ModelError or TokenizerError for a file that cannot be read, and OSError if the directory
    cannot be written.
    """
    spec = load_spec(gguf)
    headers = GGUFHeaders(gguf)
    headers.check(spec)
    with headers.open(spec) as stored:
        keeping = _Keeping(stored)
        # On the meta device only the reading happens.
        build_weights(spec, keeping, torch.float16, _META)
    try:
        save_file(keeping.kept, directory / "model.safetensors", {"format": "pt"})
    except SafetensorError as error:
        # The library reports a full disk as an error of its own.
        raise OSError(shorten(str(error), 200)) from None
    config, generation = _configs(gguf, sampling)
    _write(directory / "config.json", config)
    _write(directory / "generation_config.json", generation)
    _write_tokenizer(gguf, directory, spec.max_position)


def _configs(gguf: Path, sampling: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    file = read_file(gguf)
    values = {key: value for key, value in gguf_config(file).values.items() if value is not None}
    ends = values.pop("eos_token_id")
    tokens = {
        "bos_token_id": next(iter(values.pop("bos_token_id")), None),
        "eos_token_id": ends[0] if len(ends) == 1 else ends,
        "pad_token_id": file.metadata.get("tokenizer.ggml.padding_token_id"),
    }
    theta = values.pop("rope_theta", 10_000.0)
    if values["model_type"] != "llama" or values.pop("rope_scaling", None):
        raise FetchError(f"{gguf} is not a plain Llama: only one can be converted.")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        **values,
        **tokens,
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "dtype": "float16",
    }
    return config, {**tokens, **sampling}


def _write_tokenizer(gguf: Path, directory: Path, max_position: int) -> None:
    found = read_gguf_tokenizer(gguf)
    if found is None:
        raise FetchError(f"{gguf} has no tokenizer.")
    backend, special, templates = found
    # Not with the library's own `save`, whose error on a full disk is no OSError.
    (directory / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
    # Under a class of its own transformers would rebuild the tokenizer and drop how it splits.
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_position}
    settings |= {"clean_up_tokenization_spaces": False}
    _write(directory / "tokenizer_config.json", settings | special)
    if "default" in templates:
        path = directory / "chat_template.jinja"
        path.write_text(templates["default"], encoding="utf-8")


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
