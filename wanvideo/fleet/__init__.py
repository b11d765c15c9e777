"""Many videos on many GPUs: worker processes that stay warm, a queue, Ray clusters, ComfyUI servers."""
