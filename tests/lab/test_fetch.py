"""`diffusion-blend fetch`: the hub's real client against a small server on this machine that answers as the hub."""

import contextlib
import hashlib
import json
import os
import re
import struct
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from diffusion_blend.blend_core import BlendError
from diffusion_blend.blend_core.adapters.catalogue import catalogue, recognised
from diffusion_blend.lab.cli import main
from diffusion_blend.lab.downloads import RemoteFile, download, place_of, remote_files
from huggingface_hub.constants import DOWNLOAD_CHUNK_SIZE
from safetensors.torch import save

from ..core.lora_worlds import pair

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GENEVAL = catalogue()["flow-grpo-geneval"]
CONFIG = json.dumps({"r": 2, "lora_alpha": 4}).encode()
WEIGHTS = save(pair())


class Hub(ThreadingHTTPServer):
    """The hub's addresses for the files given as {repository: {path: bytes}}.

    ranges: where the Range headers that came begin.  limit: the most bytes of a file that are sent before the line
    breaks; none at all of a file that is asked for from a later byte on.
    announced: {path: SHA-256} where another one than the file's is stated.
    """

    daemon_threads = True

    def __init__(self, repositories):
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repositories, self.ranges, self.limit, self.announced = repositories, [], None, {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Nothing: a test says what it expects."""

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        path, _, _ = self.path.partition("?")
        if listing := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path):
            return self._list(listing[1])
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        content = self.server.repositories.get(file[1], {}).get(file[2]) if file else None
        if content is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        self._file(content, body)

    def _list(self, repository):
        files = self.server.repositories.get(repository)
        if files is None:
            return self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        siblings = [
            {
                "rfilename": name,
                "size": len(content),
                "lfs": {
                    "sha256": self.server.announced.get(name, hashlib.sha256(content).hexdigest()),
                    "size": len(content),
                    "pointerSize": 130,
                },
            }
            for name, content in files.items()
        ]
        answer = {"id": repository, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _file(self, content, body):
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        if body and asked:
            self.server.ranges.append(start)
        digest = hashlib.sha256(content).hexdigest()
        headers = {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        limit = 0 if asked and self.server.limit is not None else self.server.limit
        self._send(206 if asked else 200, content[start:], headers, body, limit)

    def _send(self, status, content, headers, body=True, limit=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body and self.command == "GET":
            self.wfile.write(content[:limit])
            self.wfile.flush()
            if limit is not None and limit < len(content):
                self.close_connection = True
                self.connection.close()


@pytest.fixture
def hub():
    """A server with a repository: a LoRA, its configuration, and a file that is neither."""
    files = {"adapter_model.safetensors": WEIGHTS, "adapter_config.json": CONFIG, "picture.png": b"pixels"}
    server = Hub({GENEVAL.repository: files})
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetch(hub, tmp_path):
    """fetch(arguments, answer): the finished command, in a process whose hub is the server."""
    settings = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DOWNLOAD_TIMEOUT": "5"}
    environment = {key: value for key, value in os.environ.items() if key not in ("COMFYUI_PATH", "HF_TOKEN")}
    environment |= settings | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "COLUMNS": "100"}

    def run(*arguments, answer="", stderr=subprocess.PIPE, **more):
        command = [sys.executable, "-m", "diffusion_blend.lab", "fetch", *map(str, arguments)]
        options = {"env": environment | more, "input": answer, "text": True, "timeout": 300}
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, **options)

    return run


@pytest.fixture
def comfyui(tmp_path):
    """A folder that looks like ComfyUI's."""
    (tmp_path / "ComfyUI" / "models" / "loras").mkdir(parents=True)
    (tmp_path / "ComfyUI" / "folder_paths.py").touch()
    return tmp_path / "ComfyUI"


def test_a_lora_with_its_configuration_comes_as_a_folder_where_comfyui_looks(fetch, comfyui):
    done = fetch(GENEVAL.name, "--comfyui", comfyui, "--yes")
    assert done.returncode == 0, done.stderr
    folder = comfyui / "models" / "loras" / "SD3.5M-FlowGRPO-GenEval"
    assert {file.name for file in folder.iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    assert (folder / "adapter_model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "adapter_config.json").read_bytes() == CONFIG
    assert str(folder / "adapter_model.safetensors") in done.stdout and "press R" in done.stdout
    assert recognised(folder / "adapter_model.safetensors").entry is GENEVAL


def _chunks(terminal):
    """What was written to a terminal whose other end is closed."""
    with contextlib.suppress(OSError):  # how Linux says that nothing more will come
        while chunk := os.read(terminal, 1 << 16):
            yield chunk.decode()


def test_a_terminal_shows_how_far_it_is(fetch, tmp_path):
    fcntl, pty, termios = map(pytest.importorskip, ("fcntl", "pty", "termios"))
    terminal, stderr = pty.openpty()
    fcntl.ioctl(stderr, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    assert fetch(GENEVAL.name, "--to", tmp_path, "--yes", stderr=stderr).returncode == 0
    os.close(stderr)
    shown = "".join(_chunks(terminal))
    os.close(terminal)
    assert "adapter_model.safetensors" in shown and "100%" in shown


def test_comfyuis_folder_is_also_taken_from_the_environment(fetch, comfyui):
    assert fetch(GENEVAL.name, "--yes", COMFYUI_PATH=str(comfyui)).returncode == 0
    assert len(list(comfyui.glob("models/loras/*/adapter_model.safetensors"))) == 1


def test_it_asks_first_and_says_what_comes(fetch, tmp_path):
    refused = fetch(GENEVAL.name, "--to", tmp_path / "here", answer="n\n")
    size = f"{(len(WEIGHTS) + len(CONFIG)) / 1e6:.1f} MB"
    assert refused.returncode == 130
    assert "2 files" in refused.stdout and size in refused.stdout and "SD3.5 community" in refused.stdout
    assert not list(tmp_path.glob("here/**/*.safetensors"))
    assert fetch(GENEVAL.name, "--to", tmp_path / "here", answer="y\n").returncode == 0
    assert len(list(tmp_path.glob("here/**/*.safetensors"))) == 1


def test_a_second_time_nothing_is_downloaded_or_asked(fetch, hub, tmp_path):
    assert fetch(GENEVAL.name, "--to", tmp_path, "--yes").returncode == 0
    hub.limit = 0  # no byte of a file comes any more
    again = fetch(GENEVAL.name, "--to", tmp_path)
    assert again.returncode == 0, again.stderr
    assert "there already" in again.stdout and "Download?" not in again.stdout


def test_a_download_that_was_cut_off_goes_on_where_it_was(fetch, hub, tmp_path):
    large = os.urandom(2 * DOWNLOAD_CHUNK_SIZE)  # the client writes whole chunks
    hub.repositories[GENEVAL.repository]["adapter_model.safetensors"] = large
    hub.limit = 3 * DOWNLOAD_CHUNK_SIZE // 2
    cut = fetch(GENEVAL.name, "--to", tmp_path, "--yes")
    assert cut.returncode == 2 and "could not be downloaded" in cut.stderr and "what came is kept" in cut.stderr
    place = tmp_path / GENEVAL.folder / "adapter_model.safetensors"
    assert not place.exists()
    hub.limit = None
    hub.ranges.clear()
    done = fetch(GENEVAL.name, "--to", tmp_path, "--yes")
    assert done.returncode == 0, done.stderr
    assert hub.ranges == [DOWNLOAD_CHUNK_SIZE]
    assert place.read_bytes() == large


def test_a_file_that_is_not_the_announced_one_is_not_kept(fetch, hub, tmp_path):
    hub.announced["adapter_model.safetensors"] = "0" * 64
    done = fetch(GENEVAL.name, "--to", tmp_path, "--yes")
    assert done.returncode == 2 and "came otherwise than announced" in done.stderr
    assert not (tmp_path / GENEVAL.folder / "adapter_model.safetensors").exists()


def test_another_file_of_that_name_is_not_overwritten(fetch, tmp_path):
    place = tmp_path / GENEVAL.folder / "adapter_model.safetensors"
    place.parent.mkdir()
    place.write_bytes(b"mine")
    done = fetch(GENEVAL.name, "--to", tmp_path, "--yes")
    assert done.returncode == 2 and "is there already, and is another file (4 bytes came" in done.stderr
    assert place.read_bytes() == b"mine"


def test_an_entry_whose_files_are_not_listed_brings_all_weights_of_its_repository(fetch, hub, tmp_path):
    entry = catalogue()["flow-opd"]
    hub.repositories[entry.repository] = {"lora/adapter_model.safetensors": WEIGHTS, "lora/adapter_config.json": CONFIG}
    hub.repositories[entry.repository]["README.md"] = b"words"
    assert fetch(entry.name, "--to", tmp_path, "--yes").returncode == 0
    came = {file.relative_to(tmp_path / "Flow-OPD").as_posix() for file in tmp_path.glob("Flow-OPD/**/*.*")}
    assert came == {"lora/adapter_model.safetensors", "lora/adapter_config.json"}


def test_what_is_missing_on_the_server_is_named(fetch, hub, tmp_path):
    del hub.repositories[GENEVAL.repository]["adapter_config.json"]
    done = fetch(GENEVAL.name, "--to", tmp_path, "--yes")
    assert done.returncode == 2 and "has no file adapter_config.json any more" in done.stderr
    hub.repositories.clear()
    done = fetch(GENEVAL.name, "--to", tmp_path, "--yes")
    assert done.returncode == 2 and "could not be listed" in done.stderr and GENEVAL.page in done.stderr


def test_where_to_put_it_has_to_be_known(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    assert main(["fetch", GENEVAL.name, "--yes"]) == 2
    assert "Give --comfyui FOLDER" in capsys.readouterr().err
    assert main(["fetch", GENEVAL.name, "--yes", f"--comfyui={tmp_path}"]) == 2
    assert "is not ComfyUI's folder" in capsys.readouterr().err


def test_names_are_listed_and_near_names_offered(capsys):
    assert main(["fetch"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[:-1]] == list(catalogue())
    assert main(["fetch", "spo"]) == 2
    assert "Near names: spo-sdxl, spo-sd15" in capsys.readouterr().err


def test_a_file_at_an_address_of_its_own_comes_by_the_same_client(hub, tmp_path):
    hub.repositories["some/files"] = {"lora.safetensors": WEIGHTS}
    entry = catalogue()["dpo-sd15"]
    entry = replace(entry, url=f"{hub.address}/some/files/resolve/main/lora.safetensors")
    (file,) = remote_files(entry)
    place = place_of(entry, file, tmp_path)
    place.with_name(place.name + ".part").write_bytes(WEIGHTS[:100])
    assert download(entry, file, tmp_path) == place
    assert place.read_bytes() == WEIGHTS and hub.ranges == [100]


def test_a_full_disk_is_noticed_before_the_download(tmp_path):
    with pytest.raises(BlendError, match="Make room"):
        download(GENEVAL, RemoteFile("adapter_model.safetensors", size=10**18), tmp_path)
