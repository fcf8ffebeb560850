"""The black-box suite for OpenAI-compatible servers: what a client, an operator and a scraper may rely on, each as a check with a verdict.

It knows a URL and nothing of who is behind it; what it cannot see from outside it skips, and says why.
"""
