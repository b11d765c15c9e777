"""`app`: the same in a browser."""

from ..app.server import main

__all__ = ["main"]
