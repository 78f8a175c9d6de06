"""What machines can do, and how much work a step is.

`work` counts a step's FLOPs and bytes from shapes, `devices` is a table of GPUs with sources,
`machine` describes this one, `ceilings` measures it, and `roofline` compares work with limits.
Knows nothing about engines.
"""

from minserve.hardware.ceilings import Ceilings, machine_ceilings, measure_ceilings
from minserve.hardware.devices import DEVICES, DeviceSpec, find_device
from minserve.hardware.machine import MachineInfo, describe_machine
from minserve.hardware.measure import Rate, best_rate
from minserve.hardware.roofline import RooflineEstimate, roofline
from minserve.hardware.work import WorkCounter, count_step

__all__ = [
    "DEVICES",
    "Ceilings",
    "DeviceSpec",
    "MachineInfo",
    "Rate",
    "RooflineEstimate",
    "WorkCounter",
    "best_rate",
    "count_step",
    "describe_machine",
    "find_device",
    "machine_ceilings",
    "measure_ceilings",
    "roofline",
]
