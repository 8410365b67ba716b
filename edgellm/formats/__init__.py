"""Model files: bytes in, tensors and metadata out."""
