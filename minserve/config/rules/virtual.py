"""The rules of modelled time: nothing is computed, so there is nothing to compile or to overlap."""

from __future__ import annotations

from minserve.config.knobs import ConfigError
from minserve.config.question import Answer, Question, Rule
from minserve.spec import UNQUANTIZED


def modelled_time_compiles_nothing(question: Question) -> None:
    """Refuse `kernels.compile`."""
    if question.facts.modelled and question.config.kernels.compile:
        raise ConfigError(
            "kernels.compile=True has nothing to compile in an engine on modelled time: leave it "
            "off, and give the cost model a smaller overhead per step instead"
        )


def modelled_time_captures_nothing(question: Question) -> None:
    """Refuse `kernels.cuda_graphs`."""
    if question.facts.modelled and question.config.kernels.cuda_graphs:
        raise ConfigError(
            "kernels.cuda_graphs=True has nothing to capture in an engine on modelled time: leave "
            "it off, and give the cost model a smaller overhead per step instead"
        )


def modelled_time_overlaps_nothing(question: Question) -> None:
    """Refuse `scheduling.async_scheduling`."""
    if question.facts.modelled and question.config.scheduling.async_scheduling:
        raise ConfigError(
            "scheduling.async_scheduling=True hides the host's time behind the device's, and "
            "modelled time has one overhead for both: leave it off, and give the cost model a "
            "smaller overhead per step instead"
        )


def modelled_memory_holds_weights(question: Question) -> Answer | None:
    """Fill in the pool's size: the modelled device's memory that the weights leave free."""
    memory, num_bytes = question.config.memory, question.facts.modelled_bytes
    if not num_bytes or memory.kv_bytes is not None:
        return None
    usable = int(num_bytes * memory.gpu_memory_utilization)
    storage = question.facts.storage or UNQUANTIZED
    weights = sum(question.model.weight_parts(question.dtype.itemsize, storage).values())
    if weights >= usable:
        raise ConfigError(
            f"the model's {weights} bytes of weights do not fit into the {usable} bytes that "
            f"memory.gpu_memory_utilization={memory.gpu_memory_utilization} allows of the modelled "
            "device: raise it, or model a device with more memory"
        )
    return Answer({"memory.kv_bytes": usable - weights})


RULES: tuple[Rule, ...] = (
    modelled_time_compiles_nothing,
    modelled_time_captures_nothing,
    modelled_time_overlaps_nothing,
    modelled_memory_holds_weights,
)
