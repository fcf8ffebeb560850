"""What happened: one record per request, and each metric defined once with its unit and formula.

Times are seconds; screens show milliseconds, by the table in `metrics.vocabulary`.
"""
