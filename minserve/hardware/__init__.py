"""What machines can do and what steps ask of them: counted work, device table, ceilings, roofline.

`work` counts a step's FLOPs and bytes from shapes. Knows nothing about engines.
"""

from minserve.hardware.work import WorkCounter, count_step

__all__ = ["WorkCounter", "count_step"]
