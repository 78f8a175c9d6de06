"""`make gpu`: the speed of an engine on a real GPU, part by part, each compared with a named limit.

A part is one module with a `run(setting)` that adds rows to a record as they are measured. `parts`
lists them, `command` runs each in its own process within a time limit, `record` is the file that a
part writes, `report` the table. With `--dry-run` every part runs at toy sizes on a CPU, so that
errors in the suite are found on machines without a GPU. Nothing here passes or fails.
"""
