"""Policies: how to act, seen an observation and a mask. Rules, tables and networks; no engine, no environment, no learner.

`policies.catalogue` finds one by name.
"""
