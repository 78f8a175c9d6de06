"""The same engine on modelled time: real scheduler and pages, and a runner that charges time."""

from minserve.virtual.costs import CostModel, LaunchCost, StepCost
from minserve.virtual.runner import VirtualRunner

__all__ = ["CostModel", "LaunchCost", "StepCost", "VirtualRunner"]
