"""The lab's panels and figures, made from what a run tells (`minserve.trace.RunTrace`).

`theme` is the visual language, `figures` pure functions from traces to plotly figures, `tokenview`
text coloured by how each token came to be, `replays` a run at a tenth of its speed, `panels` what
a reader operates, `scoring` what is asked and kept, `notebooks` the page's own life. No engine
logic lives here, and the engine never imports this package.
"""

from widgets.notebooks.cell_order import install_here
from widgets.workers import engine_turn, raise_panel_errors

# Whichever cell of a chapter runs first: from then on an error says which cell was left out.
install_here()

__all__ = ["engine_turn", "raise_panel_errors"]
