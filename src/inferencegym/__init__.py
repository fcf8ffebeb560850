"""InferenceGym learns, tests and runs serving policies for large language models.

Nothing heavy is imported here: `import inferencegym` stays quick, and each part is loaded when it is asked for.
"""

__version__ = "0.1.0"
