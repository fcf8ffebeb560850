"""The server of the LLMServe environment, as OpenEnv looks for it in a package."""
