"""This machine's models over HTTP: OpenAI's, Anthropic's and Ollama's interfaces, with the engine's batching behind.

    client ──► guard ──► routes ──► turns ──► models ──► driver ──► scheduler
               who may   what is    whose     loaded     one thread for all answers
               ask       asked      turn      and kept   of a model

`edgellm.server.app.create_app` makes the ASGI application; `edgellm serve` runs it. See docs/server.md.
"""
