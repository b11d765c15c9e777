"""One video on many GPUs: transforms over plain models, which hold no collective themselves."""
