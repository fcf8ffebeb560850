"""Learning and judging: statistics of runs, evaluation of policies on tasks, and the way into Stable-Baselines3.

Torch and Stable-Baselines3 are imported only by `learn.sb3`; install them with `pip install 'inferencegym[train]'`.
"""
