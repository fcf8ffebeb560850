"""Learning and judging: trainings that can be resumed, statistics of runs, evaluation of policies on tasks, and the way into Stable-Baselines3.

Torch and Stable-Baselines3 are imported only by `sb3`, `learners`, `export` and `forklearner`; install them with `pip install 'inferencegym[train]'`.
"""
