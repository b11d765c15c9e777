"""An app for this machine alone answers its own pages, and not those of other sites in the same browser."""

import urllib.error
import urllib.request

from support.needed import need

need("gradio", "gradio")

UPLOAD = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nmuch\r\n--x--\r\n'


def status(address, path="", data=None, **headers):
    asked = urllib.request.Request(f"{address}/{path}", data, headers)
    if data is not None:
        asked.add_header("Content-Type", "multipart/form-data; boundary=x")
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_pages_of_other_sites_are_answered_nothing(address, served, tmp_path):
    port = address.rpartition(":")[2]
    upload = "gradio_api/upload"
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "localhost", "[::1]:9"):
        assert status(address, Host=host) == 200, host
    assert status(address, upload, UPLOAD, Origin=address) == 200
    (arrived,) = (tmp_path / "out" / ".arriving").rglob("a.png")
    arrived.unlink()
    for headers in (
        {"Host": f"evil.example:{port}"}, {"Host": "127.0.0.1.evil.example"}, {"Host": "["},
        {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": f"http://localhost.evil.example:{port}"},
    ):  # fmt: skip
        assert status(address, upload, UPLOAD, **headers) == 403, headers
        assert status(address, "talk/video/talking_video_1.run", **headers) == 403, headers
    assert not list((tmp_path / "out" / ".arriving").rglob("a.png"))
    shared = served(is_shared=True)
    assert status(shared, Host="talk.example") == 200
