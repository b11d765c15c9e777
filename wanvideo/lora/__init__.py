"""LoRA files and their application."""
