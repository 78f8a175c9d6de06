"""The lab's panels and figures, made from what a run tells (`minserve.trace.RunTrace`).

`theme` is the visual language, `figures` pure functions from traces to plotly figures, `tokenview`
text coloured by how each token came to be, `replay` a run at a tenth of its speed, `panels` what
a reader operates. No engine logic lives here, and the engine never imports this package.
"""

from widgets.workers import engine_turn, raise_panel_errors

__all__ = ["engine_turn", "raise_panel_errors"]
