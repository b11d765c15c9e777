"""What ComfyUI's module `folder_paths` answers, of folders of a test."""

from types import SimpleNamespace

FOLDERS = (
    "diffusion_models", "vae", "vae_approx", "loras", "text_encoders", "clip_vision", "wav2vec2", "model_patches"
)  # fmt: skip


def comfy_folders(models, base):
    """Args: models: folder that `make_models` filled. base: where output and the user's files go."""

    def listed(folder):
        root = models / folder
        return [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]

    return SimpleNamespace(
        folder_names_and_paths={name: ([str(models / name)], set()) for name in FOLDERS},
        get_folder_paths=lambda name: [str(models / name)],
        get_filename_list=listed,
        models_dir=str(models),
        get_output_directory=lambda: str(base / "output"),
        get_user_directory=lambda: str(base / "user"),
    )
