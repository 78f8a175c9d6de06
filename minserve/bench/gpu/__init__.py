"""`make gpu`: what an engine on a real card reaches, part by part, each against a named limit.

A part is one module with a `run(setting)` that adds rows to a record as they are measured. `parts`
lists them, `command` runs each in a process of its own within a time limit, `record` is the file
that a part leaves, `report` the table. With `--dry-run` every part runs at toy sizes on a CPU, so
that the suite does not rot where no card is at hand. Nothing here passes or fails.
"""
