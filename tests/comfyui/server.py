"""A ComfyUI server process with the pack among its custom nodes, spoken to over HTTP as the browser does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from . import host

PACK = "diffusion-blend"  # as the registry names the folder: with a hyphen
PATIENCE = 180  # seconds; a prompt takes about 2 on an idle core
_TEST_NODES = '''
import torch

class RandomPrompt:
    """A text encoder's output without a text encoder, the smallest of which is too large for a test."""
    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "encode", "test"

    @classmethod
    def INPUT_TYPES(cls):
        widths = {"width": ("INT", {"default": 768}), "pooled": ("INT", {"default": 0})}
        return {"required": {"seed": ("INT", {"default": 0})}, "optional": widths}

    def encode(self, seed, width=768, pooled=0):
        generator = torch.Generator().manual_seed(seed)
        extra = {"pooled_output": torch.randn(1, pooled, generator=generator)} if pooled else {}
        return ([[torch.randn(1, 8, width, generator=generator), extra]],)

class Stacker:
    """What the LoRA stackers of other packs give: (file name, model strength, clip strength) each."""
    RETURN_TYPES, FUNCTION, CATEGORY = ("LORA_STACK",), "stack", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"files": ("STRING", {"multiline": True})}}

    def stack(self, files):
        return ([(file, 1.0, 0.5) for file in files.splitlines()],)

NODE_CLASS_MAPPINGS = {"RandomPrompt": RandomPrompt, "Stacker": Stacker}
'''


class Server:
    """A running server; `with Server(folder) as server`. The folder holds all it reads and writes, models/ among it.

    python: runs it; None: this one.  root: ComfyUI's folder; None: the first found.  options: for its command line.
    """

    def __init__(
        self, folder: Path, python: Path | None = None, root: Path | None = None, options: tuple[str, ...] = ()
    ):
        self.folder, self.options = folder, options
        self.python, self.root = python or sys.executable, root or host.workspaces()[0]
        self.log = folder / "server.log"
        (folder / "custom_nodes").mkdir(parents=True)
        (folder / "custom_nodes" / PACK).symlink_to(host.REPOSITORY, target_is_directory=True)
        (folder / "custom_nodes" / "test_nodes.py").write_text(_TEST_NODES)

    def __enter__(self) -> Server:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [self.python, "main.py", "--base-directory", self.folder, "--disable-api-nodes"]
        command += ["--cpu"] if host.DEVICE == "cpu" else []
        command += ["--front-end-root", self.root / "front_end"] if (self.root / "front_end").is_dir() else []
        command += ["--database-url", f"sqlite:///{self.folder / 'comfyui.db'}", "--disable-auto-launch"]
        command += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", PACK, "test_nodes.py"]
        command += ["--listen", "127.0.0.1", "--port", self.port]
        command += self.options
        paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        value = os.pathsep.join(path for path in paths if not Path(path).name.startswith("pytest-"))  # run.py adds that
        environment = os.environ | {"PYTHONPATH": value, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(
            list(map(str, command)),
            cwd=self.root,
            env=environment,
            stdout=self.log.open("wb"),
            stderr=subprocess.STDOUT,
        )
        self.wait(self._answers, "the server to start")
        return self

    def __exit__(self, *_) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)

    def _answers(self) -> bool:
        try:
            return bool(self.get("/system_stats"))
        except urllib.error.URLError:
            return False

    def wait(self, condition, what: str):
        """condition(), as soon as it is true; the server's log where that takes too long."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self.process.poll() is None:
            if answer := condition():
                return answer
            time.sleep(0.1)
        raise AssertionError(f"waited in vain for {what}; the server's log:\n{self.log.read_text()[-4000:]}")

    def read(self, path: str, body: dict | None = None) -> bytes:
        """The answer to GET, or to POST where there is a body."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read()

    def get(self, path: str) -> dict:
        """The answer's JSON."""
        return json.loads(self.read(path))

    def queue(self, graph: dict) -> str:
        """Queue a graph in the API's format; returns the prompt's id."""
        return json.loads(self.read("/prompt", {"prompt": graph}))["prompt_id"]

    def finish(self, prompt_id: str) -> dict:
        """The history of a prompt that has come to its end, whichever."""

        def ended():
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            return entry if entry and entry.get("status") else None

        return self.wait(ended, "a prompt to end")

    def picture(self, graph: dict) -> Path:
        """Run a graph that ends in Save Image; its first picture."""
        history = self.finish(self.queue(graph))
        assert history["status"]["status_str"] == "success", history["status"]
        (image, *_) = next(output["images"] for output in history["outputs"].values() if "images" in output)
        return self.folder / "output" / image["subfolder"] / image["filename"]
