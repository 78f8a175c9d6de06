"""Predicts how long an answer will be: a ridge regression on a prompt's last hidden state.

A model's hidden state at the last token of a prompt decides the first token of the answer, so it
contains information about the rest (TRAIL, Shahout et al., arXiv 2410.01035, predicts lengths from
it). Here a linear map of the stream after `layer` layers, together with the prompt's length, gives
the logarithm of the number of output tokens. `lengths_train` makes the map; `LengthProbe` is a
`LengthPredictor` for `EngineParts(predictor=...)`.

The probe runs the first `layer` layers over the prompt a second time when the request arrives,
which takes time: `forward_tokens` counts the tokens it computed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minserve.attention import PagedAttention
from minserve.engine.prepare import BatchBuilder
from minserve.kernels import select_ops
from minserve.layers import ForwardContext
from minserve.loading import LoadedModel
from minserve.memory import GroupPlan, KVCache, KVManager
from minserve.models import Decoder
from minserve.request import Request, SamplingParams
from minserve.scheduling import StepPlan

FILE = "length_probe.json"
"""The file beside the model's weights."""


@dataclass(frozen=True)
class LengthMap:
    """`log(1 + tokens) = bias + weights . features`; features are `[layer's stream, log length]`,
    each minus its `mean` and divided by its `scale`."""

    layer: int
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    max_tokens: int
    """Lengths in its training data are limited to this."""
    card: dict[str, Any]
    """The data it was trained on, and how good it is on prompts it never saw."""

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(asdict(self), indent=None) + "\n"

    @classmethod
    def from_json(cls, text: str) -> LengthMap:
        """The inverse of `to_json`. Raises ValueError for anything else."""
        try:
            data = json.loads(text)
            for name in ("mean", "scale", "weights"):
                data[name] = tuple(data[name])
            return cls(**data)
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a length map: {error}") from None


def weights_digest(directory: str | Path) -> str:
    """Identifies the weights that a probe was fitted to: other weights have other hidden states."""
    digest = hashlib.sha256()
    for path in sorted(Path(directory).glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class LastTokenStream:
    """Runs prompts through the first layers of a model, one at a time, in a few
    pages of its own."""

    def __init__(self, loaded: LoadedModel, layer: int) -> None:
        config = loaded.config
        self._spec, self._layer = config.model, layer
        ops = select_ops(config.config.kernels.backend, config.device, config.dtype)
        self._decoder = Decoder(config.model, loaded.weights, ops, config.max_model_len)
        block_size = config.config.memory.block_size
        blocks = config.blocks_per_request
        plans = [GroupPlan(group, blocks) for group in config.model.cache_groups()]
        cache = KVCache(plans, block_size, config.dtype, config.device)
        self._memory = KVManager(plans, block_size, 1, blocks)
        self._attention = PagedAttention(config.model, cache.layers_of(config.model), ops)
        self._builder = BatchBuilder(self._memory, ())
        self._most = config.max_model_len

    @torch.inference_mode()
    def features(self, prompt: Sequence[int]) -> Tensor:
        """float64 `[hidden_size + 1]`: the last token's stream, and the log of the length."""
        request = Request("probe", list(prompt)[-self._most :], SamplingParams(), 0.0, 0)
        count = request.num_tokens
        self._memory.admit(request)
        self._memory.reserve(request, count)
        try:
            batch = self._builder.build(StepPlan([request], [count])).batch
            stream = self._decoder.run_layers(
                self._decoder.embed(batch.token_ids),
                ForwardContext(batch, self._attention.plan(batch)),
                stop=self._layer,
            )
            last = stream[-1].double().cpu()
        finally:
            self._memory.release(request)
        return torch.cat([last, torch.tensor([math.log(len(prompt))], dtype=torch.float64)])


class LengthProbe:
    """Predicts output tokens from the prompt alone, as described at the top of this file."""

    def __init__(self, loaded: LoadedModel, fitted: LengthMap | None = None) -> None:
        """`fitted`: by default it is read from the file beside the weights.

        Raises FileNotFoundError for a model without that file, and ValueError if it was fitted
        to other weights.
        """
        if fitted is None:
            path = Path(loaded.path) / FILE
            if not path.is_file():
                raise FileNotFoundError(
                    f"the model {loaded.name!r} has no {FILE}: fit one with `python -m "
                    "minserve.zoo.lengths_train`, or use the oracle with scheduling.length_error"
                )
            fitted = LengthMap.from_json(path.read_text(encoding="utf-8"))
            if fitted.card.get("weights") != weights_digest(loaded.path):
                raise ValueError(
                    f"the {FILE} of {loaded.name!r} was fitted to other weights, whose hidden "
                    "states mean something else: fit one with `python -m "
                    "minserve.zoo.lengths_train`"
                )
        self.fitted = fitted
        self.forward_tokens = 0
        """Prompt tokens computed a second time so far, through `fitted.layer` layers."""
        self._stream = LastTokenStream(loaded, fitted.layer)
        self._mean = torch.tensor(fitted.mean, dtype=torch.float64)
        self._scale = torch.tensor(fitted.scale, dtype=torch.float64)
        self._weights = torch.tensor(fitted.weights, dtype=torch.float64)

    def predict(self, request: Request) -> float:
        """Output tokens, at least 1 and at most what the request may generate."""
        self.forward_tokens += request.num_prompt_tokens
        features = self._stream.features(request.prompt_token_ids)
        log_length = float(((features - self._mean) / self._scale) @ self._weights)
        tokens = math.expm1(min(log_length + self.fitted.bias, 20.0))
        return min(max(tokens, 1.0), float(request.max_len - request.num_prompt_tokens))
