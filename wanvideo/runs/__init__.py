"""Run folders: what a video is made from, how far it is, and how another process goes on with it."""
