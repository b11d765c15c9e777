"""What tests of the window loop sample: a video of tiny models and its sound."""

import torch
from support import recipes

from wanvideo import Conditioning, LoopSettings

FEATURE = recipes.TINY_AUDIO["layers"], recipes.TINY_AUDIO["channels"]
SETTINGS = LoopSettings(
    window_frames=9, motion_frames=5, steps=2, scheduler="euler", shift=3.0, guidance_scale=1.0,
    audio_guidance_scale=1.0,
)  # fmt: skip


def track(speaker, frames):
    return recipes.tensor(f"in.audio.{speaker}", (frames, *FEATURE), 5)


def silence(frames=3):
    return recipes.tensor("in.silence", (frames, *FEATURE), 5)


def conditioning(frames=17, speakers=1, pictures=1, prompts=1, **changes):
    """Of a video of 32 x 48; `changes` replace fields."""
    images = [recipes.tensor(f"in.image.{k}", (3, 32, 48), 5, 0.4).clamp(-1, 1) for k in range(pictures)]
    fields = dict(
        references=torch.stack(images),
        text_embeds=[recipes.tensor(f"in.text_embeds.{k}", (7 + k, 48), 5) for k in range(prompts)],
        negative_text_embeds=recipes.tensor("in.negative", (5, 48), 5),
        image_embeds=recipes.tensor("in.image_embeds", (pictures, 257, 1280), 5),
        audio=[track(speaker, frames) for speaker in range(speakers)],
        silence=silence(),
        speaker_masks=recipes.speaker_masks(4, 6, speakers),
    )
    return Conditioning(**{**fields, **changes})


class LiveAudio:
    """Sound that comes while it is asked for, and says how long it was once it has ended."""

    def __init__(self, tracks, silence):
        self.num_speakers, self.silence, self.num_frames = len(tracks), silence, None
        self.asked = []
        self._tracks = torch.stack(tracks)

    def features(self, start, stop):
        self.asked.append((start, stop))
        if stop > self._tracks.shape[1]:
            self.num_frames = self._tracks.shape[1]
        return self._tracks[:, start:stop]
