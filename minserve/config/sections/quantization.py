"""The section of `EngineConfig` about low-bit quantization."""

from __future__ import annotations

from dataclasses import dataclass

from minserve.config.knobs import Section, knob


@dataclass(frozen=True)
class QuantizationConfig(Section):
    """How numbers are stored."""

    weight_format: str = knob(
        "dense",
        "Format of the matrices in all layers; embedding, head, norms and biases stay in dtype. "
        "dense: in dtype. int8: a byte per weight and a float32 scale per output, rounded to "
        "nearest when the checkpoint is read.",
        trade_off="fewer bytes to hold and to read per step, against rounding, and slower products "
        "where the operators have none for the format",
        survey="4.2.1",
        choices=("dense", "int8"),
    )
