"""What a job and the flags of `generate` have for each node of this pack."""

from __future__ import annotations

PLAIN = "makes one clip without a window loop: the command line makes talking videos"
# Empty: the node has its counterpart, or changes no frame. Else what is said where a graph uses it.
COUNTERPARTS: dict[str, str] = {
    **dict.fromkeys(
        (
            "WanVideoTalk", "WanVideoModelLoader", "MultiTalkModelLoader", "WanVideoVAELoader",
            "LoadWanVideoT5TextEncoder", "LoadWanVideoClipTextEncoder", "WanVideoLoraSelect",
            "WanVideoLoraSelectMulti", "WanVideoSetLoRAs", "WanVideoBlockSwap", "WanVideoSetBlockSwap",
            "WanVideoVRAMManagement", "WanVideoTorchCompileSettings", "WanVideoTeaCache", "WanVideoScheduler",
            "WanVideoSchedulerv2", "WanVideoTalkingPreset", "DownloadAndLoadWav2VecModel", "Wav2VecModelLoader",
            "MultiTalkWav2VecEmbeds", "WanVideoTextEncode", "WanVideoTextEncodeSingle", "WanVideoTextEncodeCached",
            "WanVideoSourceOptions", "WanVideoImageToVideoMultiTalk", "WanVideoSamplerExtraArgs", "WanVideoSampler",
            "WanVideoSamplerv2", "WanVideoDecode", "WanVideoPassImagesFromSamples", "WanVideoTalkingVideo",
            "WanVideoSpeakers", "WanVideoPlan", "WanVideoAPG",
        ),
        "",
    ),
    "WanVideoTinyVAELoader": "frames of the command line come from the whole VAE",
    "WanVideoMagCache": "the command line has TeaCache only",
    "WanVideoEasyCache": "the command line has TeaCache only",
    "WanVideoSLG": "the command line leaves out no layers",
    "WanVideoExperimentalArgs": "the command line has none of them",
    "CreateCFGScheduleFloatList": "the command line has one cfg for all steps",
    "WanVideoParallel": "start the command with torchrun and --parallel auto",
    "MultiTalkSilentEmbeds": "a job in which nobody speaks lasts --max_frame_num, in --mode streaming",
    "WanVideoTextToSpeech": 'give "tts_audio" with --audio_mode tts, or save the sound and name its file',
    "WanVideoTextEmbedBridge": "the command line encodes prompts itself",
    "WanVideoClipVisionEncode": "the command line shows CLIP the picture as it is sampled",
    "WanVideoImageToVideoEncode": PLAIN,
    "WanVideoEmptyEmbeds": PLAIN,
    "WanVideoEncode": "the command line begins from noise alone",
}  # fmt: skip
