"""The same engine on modelled time: real scheduler and pages, and a runner that charges time."""

from minserve.virtual.runner import CostModel, LaunchCost, StepCost, VirtualRunner

__all__ = ["CostModel", "LaunchCost", "StepCost", "VirtualRunner"]
