"""Attention over paged keys and values: the plan/run interface and its backends."""
