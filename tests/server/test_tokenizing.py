"""Texts as tokens, in llama.cpp's words."""

from __future__ import annotations

from .running import Running


def test_pieces_of_characters_are_bytes(smol: Running) -> None:
    text = "tea 🫖 媽"
    tokens = smol.post("/tokenize", {"model": "smollm2-135m", "content": text, "with_pieces": True}).json()["tokens"]
    pieces = [token["piece"] for token in tokens]
    assert any(isinstance(piece, str) for piece in pieces) and any(isinstance(piece, list) for piece in pieces)
    assert b"".join(piece.encode() if isinstance(piece, str) else bytes(piece) for piece in pieces).decode() == text
    ids = smol.post("/tokenize", {"model": "smollm2-135m", "content": text}).json()["tokens"]
    assert ids == [token["id"] for token in tokens]
