"""Linear layers, and the formats that their weights are stored in."""
