"""The app in a browser: a form over the flags of `generate`, a queue, and the runs of one folder. Needs gradio."""
