"""Names of the values that ComfyUI's page stores by position."""

from __future__ import annotations

CONTROL = "control_after_generate"  # the page keeps a second value beside a seed
# Names of the values that the page stores by position, for the nodes that `export` reads.
WIDGETS: dict[str, tuple[str, ...]] = {
    "WanVideoLoraSelect": ("lora", "strength", "low_mem_load", "merge_loras"),
    "WanVideoLoraSelectMulti": (
        *(f"{name}_{i}" for i in range(5) for name in ("lora", "strength")), "low_mem_load", "merge_loras",
    ),
    "MultiTalkModelLoader": ("model",),
    "WanVideoModelLoader": (
        "model", "base_precision", "quantization", "load_device", "attention_mode", "rms_norm_function",
    ),
    "WanVideoBlockSwap": (
        "blocks_to_swap", "offload_img_emb", "offload_txt_emb", "use_non_blocking", "vace_blocks_to_swap",
        "prefetch_blocks", "block_swap_debug",
    ),
    "WanVideoTorchCompileSettings": ("backend", "fullgraph", "mode", "dynamic"),
    "WanVideoVAELoader": ("model_name", "precision"),
    "Wav2VecModelLoader": ("model", "base_precision", "load_device"),
    "DownloadAndLoadWav2VecModel": ("model", "base_precision", "load_device"),
    "LoadWanVideoClipTextEncoder": ("model_name", "precision", "load_device"),
    "LoadWanVideoT5TextEncoder": ("model_name", "precision", "load_device", "quantization"),
    "CLIPVisionLoader": ("clip_name",),
    "LoadImage": ("image",),
    "LoadImageMask": ("image", "channel"),
    "LoadAudio": ("audio",),
    "LoadVideo": ("file",),
    "ImageScale": ("upscale_method", "width", "height", "crop"),
    "ImageResizeKJv2": ("width", "height"),
    **dict.fromkeys(
        (
            "INTConstant", "FloatConstant", "BOOLConstant", "PrimitiveNode", "PrimitiveInt", "PrimitiveFloat",
            "PrimitiveBoolean", "PrimitiveString", "PrimitiveStringMultiline",
        ),
        ("value",),
    ),
    "WanVideoImageToVideoMultiTalk": (
        "width", "height", "frame_window_size", "motion_frame", "force_offload", "colormatch", "tiled_vae", "mode",
        "output_path", "colormatch_strength", "size",
    ),
    "WanVideoSourceOptions": (
        "source_end", "mouth", "feather", "scene_seg", "crf", "camera_zoom", "camera_right", "camera_down",
        "camera_period", "reanchor",
    ),
    "MultiTalkWav2VecEmbeds": (
        "normalize_loudness", "num_frames", "fps", "audio_scale", "audio_cfg_scale", "multi_audio_type",
        "add_noise_floor", "smooth_transients",
    ),
    "WanVideoTextEncode": ("positive_prompt", "negative_prompt", "force_offload", "use_disk_cache", "device"),
    "WanVideoTextEncodeCached": (
        "model_name", "precision", "positive_prompt", "negative_prompt", "quantization", "use_disk_cache", "device",
    ),
    "WanVideoTalk": (
        "prompt", "preset", "seed", CONTROL, "lora", "lora_strength", "multi_audio_type", "size", "width", "height",
        "steps", "audio_scale", "audio_cfg_scale", "negative_prompt",
    ),
    "WanVideoTextEncodeSingle": ("prompt", "force_offload", "use_disk_cache", "device"),
    "WanVideoSamplerv2": ("cfg", "seed", CONTROL, "force_offload", "add_noise_to_samples"),
    "WanVideoSamplerExtraArgs": ("riflex_freq_index", "rope_function"),
    "WanVideoScheduler": ("scheduler", "steps", "shift", "start_step", "end_step", "enhance_hf"),
    "WanVideoSchedulerv2": ("scheduler", "steps", "shift", "start_step", "end_step", "enhance_hf"),
    "WanVideoTalkingPreset": ("preset",),
    "WanVideoAPG": ("momentum", "norm_threshold"),
    "WanVideoVRAMManagement": ("offload_percent",),
    "WanVideoSpeakers": (
        "width", "height", "frame_window_size", "motion_frame", "regions", "order", "multi_audio_type",
    ),
    "WanVideoMagCache": ("magcache_thresh", "magcache_K", "start_step", "end_step", "cache_device"),
    "WanVideoEasyCache": ("easycache_thresh", "start_step", "end_step", "cache_device"),
    "WanVideoTeaCache": ("rel_l1_thresh", "start_step", "end_step", "cache_device", "use_coefficients", "mode"),
    "WanVideoSampler": (
        "steps", "cfg", "shift", "seed", CONTROL, "force_offload", "scheduler", "riflex_freq_index",
        "denoise_strength", "batched_cfg", "rope_function", "start_step", "end_step", "add_noise_to_samples",
    ),
    "SaveVideo": ("filename_prefix", "format", "codec"),
    "SetNode": ("name",),
    "GetNode": ("name",),
}  # fmt: skip
