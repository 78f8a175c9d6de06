"""`make gpu`: the speed of an engine on a real card, part by part, each compared with a named
limit.

A part is one module with a `run(setting)` that adds rows to a record as they are measured. `parts`
lists them, `command` runs each in a process of its own within a time limit, `record` is the file
that a part leaves, `report` the table. With `--dry-run` every part runs at toy sizes on a CPU, so
that errors in the suite show on machines without a card. Nothing here passes or fails.
"""
