"""Models: from a Hugging Face directory or hub name to a running decoder.

`load_spec` reads the description of a model, `WeightStore.load` (or `load_weights`) its tensors,
and `Decoder` runs them over a batch with one engine's operators and attention plan. Knows nothing
about requests, pages, sampling or tokenizers.
"""

from minserve.models.decoder import Compilations, Decoder
from minserve.models.errors import ModelError
from minserve.models.loading.checkpoint import load_weights
from minserve.models.loading.describe import load_generation_defaults, load_spec
from minserve.models.loading.families import FAMILIES
from minserve.models.loading.hub import resolve_model
from minserve.models.loading.rope_config import check_rotary_table
from minserve.models.store import WeightStore, default_store
from minserve.models.weights import DecoderWeights, LayerWeights, random_weights

__all__ = [
    "FAMILIES",
    "Compilations",
    "Decoder",
    "DecoderWeights",
    "LayerWeights",
    "ModelError",
    "WeightStore",
    "check_rotary_table",
    "default_store",
    "load_generation_defaults",
    "load_spec",
    "load_weights",
    "random_weights",
    "resolve_model",
]
