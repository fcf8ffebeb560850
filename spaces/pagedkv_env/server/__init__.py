"""The server of the PagedKV environment, as OpenEnv looks for it in a package."""
