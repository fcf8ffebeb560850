"""Engines that answer requests: the simulator, managed llama.cpp and vLLM servers, any OpenAI-compatible URL."""
