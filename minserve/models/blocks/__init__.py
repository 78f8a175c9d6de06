"""The blocks of decoders: one file per mixer and feed-forward (Miao et al., section 4.1.2)."""

from minserve.models.blocks.attention import AttentionMixer, AttentionSpec, AttentionWeights
from minserve.models.blocks.base import (
    Binding,
    BlockReader,
    FeedForward,
    FeedForwardBlock,
    Mixer,
    MixerBlock,
)
from minserve.models.blocks.gated import FeedForwardSpec, GatedFeedForward, GatedWeights

__all__ = [
    "AttentionMixer",
    "AttentionSpec",
    "AttentionWeights",
    "Binding",
    "BlockReader",
    "FeedForward",
    "FeedForwardBlock",
    "FeedForwardSpec",
    "GatedFeedForward",
    "GatedWeights",
    "Mixer",
    "MixerBlock",
]
