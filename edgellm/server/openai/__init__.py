"""OpenAI's interface, with the words that llama.cpp and vLLM add to it."""
