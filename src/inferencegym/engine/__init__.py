"""The simulated inference engine: queue, KV ledger, scheduler and step time, run inside Numba.

Its clock is an integer number of picoseconds; the rules are docs/scheduling.md.
"""
