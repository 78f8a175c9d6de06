"""The book: the chapters as a static site, for readers without a kernel (`python -m book`).

Figures and outputs come from `recorded/`, which `python -m book.record` fills by running the
chapters. Building needs neither a kernel nor the engine.
"""
