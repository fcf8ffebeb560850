"""OpenEnv side of the environments: models on the wire, environment classes, the server with its routes, clients and the baseline runner.

Nothing else in the package imports this, and it needs the extra `openenv`. Importing this package itself costs nothing.
"""
