"""The panels that chapters are made of. Each is displayed as it is, and driven from code alike.

`Compare` two configurations, `Predict` before looking, `Estimate` a number, `Sweep` a knob, look
under the `Roofline`, `Check` an exercise, `Recap`. Panels run the engine; none of them knows how it
works.
"""

from widgets.metrics import METRICS, Metric
from widgets.panels.comparison.compare import Compare
from widgets.panels.comparison.recording import Recordings
from widgets.panels.comparison.result import Agreement, CompareResult
from widgets.panels.comparison.verdict import Verdict, judge
from widgets.panels.controls import Pick, Slide, Tick
from widgets.panels.exercises.check import Check
from widgets.panels.exercises.exercise import Case, Exercise, Misconception, Picture, Score
from widgets.panels.exercises.judging import Failure, Report, check
from widgets.panels.exercises.returns import Wrong
from widgets.panels.questions.estimate import Estimate
from widgets.panels.questions.predict import Predict
from widgets.panels.questions.recap import Recap
from widgets.panels.roofline import Roofline
from widgets.panels.sweeps.sweep import Sweep

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
