"""Training a model from nothing: its shape, tokenizer, first weights, and text as ids."""
