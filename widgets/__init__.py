"""The lab's panels and figures, made from what a run tells (`minserve.trace.RunTrace`).

`theme` is the visual language, `figures` pure functions from traces to plotly figures, `tokenview`
text coloured by how each token came to be, `replay` a run at a tenth of its speed. No engine
logic lives here, and the engine never imports this package.
"""
