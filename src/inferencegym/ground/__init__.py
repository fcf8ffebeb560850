"""What everything else stands on: units, errors, names, chance, and the facts of hardware and models.

It imports nothing of the package above it, and no library that is slow to load at the top.
"""
