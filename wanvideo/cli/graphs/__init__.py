"""Graphs of ComfyUI as jobs and flags, and jobs as graphs: what `export` and `import` do."""
