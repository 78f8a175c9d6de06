"""An engine on modelled time: the same loop, over a runner that charges for steps it never runs.

Its fast-forward does many equal steps at once (`engine.repeat`); a property test checks that the
result, the trace included, equals that of single steps.
"""

from __future__ import annotations

from minserve.clock import VirtualClock
from minserve.config import ResolvedConfig
from minserve.engine import Engine
from minserve.engine.parts import CONFIGURED, EngineParts
from minserve.engine.prepare import Builder
from minserve.memory import KVManager
from minserve.trace import RunTrace
from minserve.virtual.runner import VirtualRunner


class VirtualEngine(Engine):
    """An `Engine` over a `VirtualRunner`, which draws the same token for every request."""

    def __init__(
        self,
        config: ResolvedConfig,
        runner: VirtualRunner,
        memory: KVManager,
        clock: VirtualClock,
        trace: RunTrace,
        builder: Builder,
        parts: EngineParts = CONFIGURED,
    ) -> None:
        super().__init__(config, runner, memory, None, clock, trace, parts, builder)
        self._charge = runner.charge
        self._token = runner.token_id

    def fast_forward(self, until_s: float = float("inf")) -> int:
        """Repeat the last step until there is something to decide; returns the number
        of steps, maybe 0.

        Begins no step at or after `until_s`. Call it between steps.
        """
        return self.repeat(until_s, self._token, self._charge)
