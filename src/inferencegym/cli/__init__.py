"""What a person types: one verb a file, and `compose.py`, the only place that joins the parts.

The environment is read here and nowhere else.
"""
