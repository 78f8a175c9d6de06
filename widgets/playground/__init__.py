"""The playground: any configuration against any other, on any workload, on either clock.

- `panel`: the playground itself; `state` holds the setup that all its forms change
- `forms`, `editor`, `fields`: model and clock, workload, sides and their configurations
- `challenges`, `challenge_panel`: six tasks, and their place beside a playground
- `running`, `result`, `view`, `export`: a run, what it found, how it looks, its files
"""

from widgets.playground.challenge_panel import Challenges
from widgets.playground.panel import Playground

__all__ = ["Challenges", "Playground"]
