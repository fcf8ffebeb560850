"""The dashboard: Arena, Episode, Runtime, Workloads and Leaderboard in a browser, mounted by `inferencegym env` and `inferencegym serve`.

Pages are static files (`static/`) that ask a JSON interface below `/dashboard/api`; whatever computes does so in processes of its own (`desk`, `worker`).
"""
