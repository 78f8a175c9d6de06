"""A model by name: finds its directory, reads and checks its files, and shares its weights.

The same model loaded twice is one copy in memory. Knows nothing about engines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minserve.config import EngineConfig, Facts, ResolvedConfig, resolve
from minserve.engine.recovery import describe, is_interrupt
from minserve.files.cache_dir import cache_directory, secure
from minserve.inputs.prompts import Prompt, PromptInput, parse_prompt
from minserve.kernels import select_ops
from minserve.models import (
    DecoderWeights,
    check_rotary_table,
    default_store,
    load_generation_defaults,
    load_spec,
    resolve_model,
)
from minserve.models.loading.hub import check_model_name
from minserve.quantization.formats import FORMATS, FormatPlan
from minserve.request import InvalidRequestError, SamplingParams
from minserve.tokenizer import Tokenizer

ZOO = Path(__file__).parent / "zoo"
FETCHABLE = ("smollm2",)
"""Names of models that `minserve zoo fetch` gets (`zoo.fetching` knows the rest)."""


@dataclass(frozen=True)
class DescribedModel:
    """A model directory without its weights: all that it takes to turn text into tokens."""

    name: str
    path: Path
    config: ResolvedConfig
    tokenizer: Tokenizer | None
    generation_defaults: Mapping[str, Any]

    def default_sampling_params(self) -> SamplingParams:
        """SamplingParams with the recommended values of the model's generation_config.json."""
        defaults = self.generation_defaults
        values: dict[str, Any] = {
            name: defaults[name]
            for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
            if defaults.get(name) is not None
        }
        if defaults.get("do_sample") is False:
            values["temperature"] = 0.0
        if defaults.get("max_new_tokens"):
            values["max_tokens"] = defaults["max_new_tokens"]
        return SamplingParams(**values)

    def encode(self, prompt: Prompt | PromptInput) -> list[int]:
        """Token ids of a prompt; ids are returned unchanged. Raises InvalidRequestError, even if
        the tokenizer itself panics, which is not an ordinary exception."""
        if not isinstance(prompt, PromptInput):
            prompt = parse_prompt(prompt, self.config.max_prompt_chars)
        if prompt.token_ids is not None:
            return prompt.token_ids
        tokenizer, text = self.need_tokenizer("text"), prompt.text or ""
        try:
            return tokenizer.encode(text)
        except BaseException as error:
            if is_interrupt(error):
                raise
            raise InvalidRequestError(
                f"the tokenizer cannot take this prompt of {len(text)} characters "
                f"({describe(error)}): shorten it, or give token ids"
            ) from error

    def need_tokenizer(self, what: str) -> Tokenizer:
        """The tokenizer. Raises InvalidRequestError, saying that `what` needs it, if there is
        none."""
        if self.tokenizer is None:
            raise InvalidRequestError(
                f"the model {self.name!r} came without a tokenizer, so {what} cannot be turned "
                "into tokens: give lists of token ids"
            )
        return self.tokenizer


@dataclass(frozen=True)
class LoadedModel(DescribedModel):
    """A model directory that has been read: its configuration is resolved and its weights are
    loaded."""

    weights: DecoderWeights

    @property
    def description(self) -> DescribedModel:
        """The same for a caller that outlives the weights."""
        return DescribedModel(
            self.name, self.path, self.config, self.tokenizer, self.generation_defaults
        )


def fetched_models() -> Path:
    """Where fetched models are: in this user's cache, a directory each."""
    return cache_directory() / "models"


def is_fetched(directory: Path) -> bool:
    """Whether a fetched model is there: it is put there as a whole, so one file tells."""
    return (directory / "config.json").is_file()


def find_model(model: str | Path) -> Path:
    """The directory of "zoo/NAME", of a path, or of a name on the Hugging Face hub; a GGUF file
    is its own."""
    name = str(model)
    check_model_name(name)
    if name.startswith("zoo/") and not Path(name).is_dir():
        bare = name.removeprefix("zoo/")
        if bare in FETCHABLE:
            return _fetched(bare)
        path = ZOO / bare
        if not (path / "config.json").is_file():
            known = sorted(f"zoo/{entry.parent.name}" for entry in ZOO.glob("*/config.json"))
            raise FileNotFoundError(
                f"there is no model {name!r} in the zoo; it has: {', '.join(known) or 'none'}"
            )
        return path
    return resolve_model(name)


def _fetched(name: str) -> Path:
    path = fetched_models() / name
    if not is_fetched(path):
        raise FileNotFoundError(
            f"zoo/{name} is not fetched yet: `minserve zoo fetch {name}` gets it, once"
        )
    secure(path.parent)
    return path


def format_plan(config: EngineConfig) -> FormatPlan:
    """The formats that `quantization.weight_format` names."""
    return FormatPlan(layers=FORMATS[config.quantization.weight_format])


def load_model(
    model: str | Path,
    config: EngineConfig,
    *,
    progress: bool = True,
    facts: Facts | None = None,
    formats: FormatPlan | None = None,
) -> LoadedModel:
    """Read a model directory. Raises a sentence for anything that cannot be served; `facts` say how
    the engine over it will be built, where that is known. `formats` stores the weights in formats
    of the caller's own, instead of the one that `quantization.weight_format` names."""
    path = find_model(model)
    # The small files first: most problems of a directory are found before weights are read.
    spec = load_spec(path)
    plan = format_plan(config) if formats is None else formats
    resolved = resolve(config, spec, facts=dataclasses.replace(facts or Facts(), storage=plan))
    if formats is not None:
        note = "the weights are stored in the caller's own formats (load_model(formats=...))"
        resolved = dataclasses.replace(resolved, notes=(*resolved.notes, note))
    check_rotary_table(spec, resolved.max_model_len)
    defaults = load_generation_defaults(path)
    tokenizer = Tokenizer.from_dir(path)
    if tokenizer is not None:
        resolved = dataclasses.replace(resolved, notes=(*resolved.notes, *tokenizer.notes))
    if config.kernels.num_threads is not None:
        torch.set_num_threads(config.kernels.num_threads)
    name = str(model) if str(model).startswith("zoo/") else path.name
    ops = select_ops(resolved.config.kernels.backend, resolved.device, resolved.dtype)
    weights = default_store.load(
        path, spec, resolved.dtype, resolved.device, progress, plan, ops.packing
    )
    return LoadedModel(
        name=name,
        path=path,
        config=resolved,
        weights=weights,
        tokenizer=tokenizer,
        generation_defaults=defaults,
    )
