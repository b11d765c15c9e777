"""The one way from a request to frames: files, inputs, conditioning, engine, rendering."""
