"""Trained checkpoints into GGUF files, GGUF files into smaller ones, and back."""
