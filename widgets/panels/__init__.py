"""The panels that chapters are made of. Each is displayed as it is, and driven from code alike.

`Compare` two configurations, `Predict` before looking, `Estimate` a number, `Sweep` a knob, look
under the `Roofline`, `Check` an exercise, `Recap`. Panels run the engine; none of them knows how it
works.
"""

from widgets.metrics import METRICS, Metric
from widgets.panels.check import Check
from widgets.panels.checking import Failure, Report, check
from widgets.panels.checks.returns import Wrong
from widgets.panels.compare import Compare
from widgets.panels.controls import Pick, Slide, Tick
from widgets.panels.estimate import Estimate
from widgets.panels.exercise import Case, Exercise, Misconception, Picture, Score
from widgets.panels.predict import Predict
from widgets.panels.recap import Recap
from widgets.panels.recording import Recordings
from widgets.panels.result import Agreement, CompareResult
from widgets.panels.roofline import Roofline
from widgets.panels.sweep import Sweep
from widgets.panels.verdict import Verdict, judge

__all__ = [
    "METRICS",
    "Agreement",
    "Case",
    "Check",
    "Compare",
    "CompareResult",
    "Estimate",
    "Exercise",
    "Failure",
    "Metric",
    "Misconception",
    "Pick",
    "Picture",
    "Predict",
    "Recap",
    "Recordings",
    "Report",
    "Roofline",
    "Score",
    "Slide",
    "Sweep",
    "Tick",
    "Verdict",
    "Wrong",
    "check",
    "judge",
]
