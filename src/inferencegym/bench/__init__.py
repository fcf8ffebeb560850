"""Comparisons and reports made from records, workloads and summaries, of any source.

It never imports the engine, so that it works on a foreign server's records as well.
"""
