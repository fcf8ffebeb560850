"""What a policy may know and may change: snapshots, knobs, and the protocol of a plant that has both.

No engine lives here: the simulated engine and a live gateway both answer to it.
"""
