"""Ollama's interface, as far as its clients need it to chat, embed and see what there is."""
