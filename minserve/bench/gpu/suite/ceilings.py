"""The device's best rates: bandwidth by working set, and matrix products.

All other parts are compared with these.
"""

from __future__ import annotations

from minserve.bench.gpu.setting import Setting, copy_rate, measure


def run(setting: Setting) -> None:
    """One row: the ceilings in the form of `hardware.Ceilings`."""
    found = measure(setting)
    copy, _ = copy_rate(found)
    setting.record.add(
        {
            "name": found.processor,
            "copy_bytes_per_s": copy,
            "read_bytes_per_s": found.bandwidth[-1].read.per_s,
            "matrix_flops_per_s": found.flops_per_s(setting.dtype),
            "ceilings": found.to_dict(),
        }
    )
    if found.disturbed:
        setting.record.note("something else ran on this machine meanwhile: measure again")
