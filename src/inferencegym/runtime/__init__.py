"""The gateway: an OpenAI-compatible server that admits, orders, batches and streams requests for whatever engine stands behind it."""
