"""Grading a class: what students handed in, judged by the same cases as in their notebooks.

A teacher's tool, `minserve lab grade DIR`. Each piece of work runs in a process of its own with
limits of time and memory. That keeps an accident in one from hurting another; it is no sandbox.
"""
