"""The server of the pages: flags, its address, and what it lets through."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import checks
from ..cli.generate import read_engine
from ..cli.parser import Parser, real, whole
from ..errors import InputError, UnsupportedError
from ..pipeline import TalkingVideoPipeline
from ..video.picture import read_no_other_kinds
from .studio import USERS, Studio
from .uploads import Uploads

if TYPE_CHECKING:
    import gradio

LOCAL = ("127.0.0.1", "localhost", "::1")  # names of this machine that nobody else reaches it by
HOST, PORT = LOCAL[0], 8418
OUTPUT_FOLDER = "talking_videos"
MOST_MB = 500.0
# What the reference's app starts with.
MODEL_FLAGS = ("--ckpt_dir", "--dit_path", "--quant_dir")
MODELS = (
    "--ckpt_dir=./weights/Wan2.1-I2V-14B-480P", "--wav2vec_dir=./weights/chinese-wav2vec2-base",
    "--infinitetalk_dir=weights/InfiniteTalk/single/infinitetalk.safetensors",
)  # fmt: skip
STREAMING = "--mode=streaming"
PROGRAM = "python app.py"
logger = logging.getLogger("wanvideo")


def main(argv: list[str]) -> int:
    """Serve until interrupted; flags of `generate` say with which models, and what is as it starts."""
    parser = Parser(PROGRAM, description=f"{__doc__} All other flags are those of `generate`: models, and defaults.")
    parser.add_argument("--host", default=HOST, help=f"address to listen at; {HOST} is this machine only")
    parser.add_argument("--port", type=whole, default=PORT)
    parser.add_argument("--output_dir", default=OUTPUT_FOLDER, help="videos, runs, uploads and speech go there")
    parser.add_argument("--max_upload_mb", type=real, default=MOST_MB, help="of one file")
    flags, rest = parser.parse_known_args(argv)
    checks.number("--port", flags.port, 1, 65535, whole=True)
    checks.number("--max_upload_mb", flags.max_upload_mb, 0.1, 100_000)
    check_installed()
    check_address(flags.host, flags.port)
    base = with_models(rest)
    files, options = read_engine(base, PROGRAM)
    TalkingVideoPipeline(files, options)  # what is missing is said now, not at the first video
    folder = Path(checks.path("--output_dir", flags.output_dir)).expanduser().absolute()
    serve(base, folder, flags.host, flags.port, int(flags.max_upload_mb * 1e6))
    return 0


def with_models(rest: list[str]) -> list[str]:
    """The flags, with the reference's places of models where none are named."""
    is_named = any(flag.partition("=")[0] in MODEL_FLAGS for flag in rest)
    return [STREAMING, *(() if is_named else MODELS), *rest]


def check_installed() -> None:
    """Raises: UnsupportedError without gradio."""
    if importlib.util.find_spec("gradio") is None:
        raise UnsupportedError("The app needs gradio, which is not installed. Run pip install 'gradio>=6,<7'.")


def check_address(host: str, port: int) -> None:
    """Raises: InputError when nobody can listen there."""
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise InputError(f"--host {checks.brief(host)} is no address of this machine. Use {HOST} or 0.0.0.0.") from None
    family, kind, protocol, _, address = places[0]
    with socket.socket(family, kind, protocol) as listener:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that ended a moment ago is no matter
        try:
            listener.bind(address)
        except OSError as error:
            raise InputError(
                f"--port {port} cannot be used on {host} ({error.strerror}). Choose another with --port, or stop the "
                "program that has it."
            ) from None


def serve(base: list[str], folder: Path, host: str, port: int, most_bytes: int) -> None:
    """Serve the pages until interrupted. Args: base: flags of `generate`. folder: absolute."""
    arriving = folder / ".arriving"
    arriving.mkdir(parents=True, exist_ok=True)
    os.environ["GRADIO_TEMP_DIR"] = str(arriving)  # Gradio asks for it nowhere else
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["no_proxy"] = ",".join(filter(None, (os.environ.get("no_proxy"), "localhost", HOST)))
    is_shared = host not in LOCAL
    studio = Studio(base, folder, Uploads(folder / "uploads", arriving, most_bytes), is_shared)
    if is_shared:
        logger.warning(
            "Everybody who reaches %s:%d can make videos; there is no password. Each browser sees its own, in %s.",
            host, port, folder / USERS,
        )  # fmt: skip
    try:
        launch(studio, host, port, most_bytes)
    finally:
        studio.close()


def launch(studio: Studio, host: str, port: int, most_bytes: int, is_blocking: bool = True) -> gradio.Blocks:
    """Start the server of a studio. Returns: the application, which `close` ends."""
    import gradio as gr
    from starlette.middleware import Middleware
    from starlette.routing import Route

    from .fields import UPLOAD_ROUTE
    from .origin import OnlyLocal
    from .page import DRIFT_ROUTE, VIDEO_ROUTE, Page
    from .texts import CHINESE, ENGLISH

    read_no_other_kinds()  # Gradio opens what it is sent as painted by itself
    with gr.Blocks(title=ENGLISH.title, analytics_enabled=False, delete_cache=(3600, 86400)) as pages:
        Page(studio, ENGLISH)
    with pages.route(CHINESE.language, f"/{CHINESE.path}"):
        Page(studio, CHINESE)
    found = {VIDEO_ROUTE: studio.video_of, DRIFT_ROUTE: studio.drift_of}
    place = "{place}/{name}" if studio.is_shared else "{name}"
    routes = [Route(f"/{route}/{place}", _file(find)) for route, find in found.items()]
    routes.append(Route(f"/{UPLOAD_ROUTE}/{{name}}", _file(studio.uploads.find)))
    guards = [] if studio.is_shared else [Middleware(OnlyLocal, names=LOCAL)]
    pages.queue(default_concurrency_limit=8, max_size=64)
    pages.launch(
        server_name=host, server_port=port, share=False, quiet=True, show_error=False, max_file_size=most_bytes,
        prevent_thread_lock=True, ssr_mode=False, footer_links=[], enable_monitoring=False,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        app_kwargs={"routes": routes, "middleware": guards, "docs_url": None, "redoc_url": None},
    )  # fmt: skip
    logger.info("The app is at http://%s:%d (中文: /%s). Ctrl+C ends it.", host, port, CHINESE.path)
    if is_blocking:
        pages.block_thread()
    return pages


def _file(find: Callable[..., Path | None]) -> Any:
    """Answers with the file that `find` has under a name, in a place; no other file of this machine."""
    from starlette.requests import Request
    from starlette.responses import FileResponse, PlainTextResponse, Response

    def answer(request: Request) -> Response:
        try:
            file = find(**request.path_params)
        except InputError as error:
            return PlainTextResponse(str(error), 404)
        if file is None:
            return PlainTextResponse("It is not there yet.", 404)
        headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
        return FileResponse(file, headers=headers)

    return answer
