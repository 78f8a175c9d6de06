"""Two configurations, one workload: run in turns, judged by rounds, drawn as strips."""
