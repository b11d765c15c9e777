"""Prompts: the tokenizer and the cache of encoded ones."""
