"""A Hugging Face hub of a test's own: its HTTP API as huggingface_hub 2.4 asks it, on a real server.

Weights are large files: `resolve` sends them on to another host (localhost instead of 127.0.0.1), which knows ranges.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from safetensors.numpy import save

from tests.waiting import PATIENCE_S

DEMO = Path(__file__).parents[1] / "workers" / "demo"
MODEL_PATH = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/(?P<what>revision|tree)/(?P<revision>[^/]+))?/?")
FILE_PATH = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
PIECE_BYTES = 16 * 1024


@dataclass(frozen=True)
class Asked:
    """A request that came."""

    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class Repository:
    """A model: files by their paths, at one commit. `gated` ones are shown to nobody."""

    files: dict[str, bytes]
    gated: bool = False
    downloads: int = 0
    tags: tuple[str, ...] = ("mlx",)

    @property
    def commit(self) -> str:
        """Of all files: 40 hexadecimal digits."""
        content = b"".join(path.encode() + data for path, data in sorted(self.files.items()))
        return hashlib.sha1(content, usedforsecurity=False).hexdigest()

    def tree(self) -> list[dict[str, Any]]:
        """The list of files as the hub gives it."""
        return [_entry(path, data) for path, data in sorted(self.files.items())]


@dataclass
class Troubles:
    """`cut_at`: a large file's connection breaks there, once, and then the hub is down until it is healed.

    `hold_at`: it stops there until `go_on` is set. `forged`: the content of this hash comes with other bytes.
    """

    cut_at: int | None = None
    hold_at: int | None = None
    forged: str = ""
    is_down: bool = False
    held: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)


class Hub:
    """The stand-in; `asked` is what came."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.asked: list[Asked] = []
        self.troubles = Troubles()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                """Everything."""
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                """Be silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def environment(self, folder: Path) -> dict[str, str]:
        """For a process that is to ask here, with a cache of its own."""
        patience = {"HF_HUB_DOWNLOAD_TIMEOUT": str(round(PATIENCE_S)), "HF_HUB_ETAG_TIMEOUT": str(round(PATIENCE_S))}
        where = {"HF_ENDPOINT": self.url, "HF_HUB_CACHE": str(folder), "HF_HUB_OFFLINE": "0"}
        return where | patience | {"HF_TOKEN": "hf_secret"}

    def ranges(self, data: bytes) -> list[str | None]:
        """What was asked of a large file, request by request."""
        place = f"/cdn/{hashlib.sha256(data).hexdigest()}"
        return [asked.range for asked in self.asked if asked.path == place and asked.method == "GET"]

    def close(self) -> None:
        """Stop answering."""
        self.troubles.go_on.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """One request."""
        parts = urlsplit(request.path)
        path, headers = unquote(parts.path), request.headers
        self.asked.append(Asked(request.command, path, headers.get("range"), headers.get("authorization")))
        if self.troubles.is_down:
            _send(request, 503, b"")
        elif path == "/api/models":
            _send_json(request, self._search({name: values[0] for name, values in parse_qs(parts.query).items()}))
        elif path.startswith("/cdn/"):
            self._send_content(request, path.removeprefix("/cdn/"))
        elif found := MODEL_PATH.fullmatch(path):
            self._send_about(request, found["repo"], found["what"], found["revision"])
        elif found := FILE_PATH.fullmatch(path):
            self._send_file(request, found["repo"], found["revision"], found["file"])
        else:
            _send(request, 404, b"")

    def _search(self, query: Mapping[str, str]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [
            {"id": name, "modelId": name, "downloads": repo.downloads, "likes": 1, "tags": list(repo.tags)}
            | {"gated": "manual" if repo.gated else False, "pipeline_tag": "text-generation"}
            for name, repo in self.repositories.items()
            if query["search"].lower() in name.lower() and query.get("filter", "mlx") in ("mlx", *repo.tags)
        ]
        if "filter" in query:
            found = [model for model in found if query["filter"] in model["tags"]]
        return sorted(found, key=lambda model: -int(model["downloads"]))[: int(query["limit"])]

    def _refused(self, request: BaseHTTPRequestHandler, repo: str, revision: str | None) -> bool:
        """Unknown models, gated ones and unknown revisions, in the hub's words."""
        known = self.repositories.get(repo)
        if known is None:
            _send(request, 404, b"", {"X-Error-Code": "RepoNotFound"})
        elif known.gated:
            _send(request, 403, b"", {"X-Error-Code": "GatedRepo"})
        elif revision not in (None, "main", known.commit):
            _send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            return False
        return True

    def _send_about(self, request: BaseHTTPRequestHandler, repo: str, what: str | None, revision: str | None) -> None:
        if self._refused(request, repo, revision):
            return
        known = self.repositories[repo]
        if what == "tree":
            _send_json(request, known.tree())
            return
        siblings = [{"rfilename": path} for path in known.files]
        _send_json(request, {"id": repo, "modelId": repo, "sha": known.commit, "siblings": siblings, "private": False})

    def _send_file(self, request: BaseHTTPRequestHandler, repo: str, revision: str, file: str) -> None:
        if self._refused(request, repo, revision):
            return
        known = self.repositories[repo]
        if file not in known.files:
            _send(request, 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": known.commit})
            return
        data, entry = known.files[file], _entry(file, known.files[file])
        headers = {"X-Repo-Commit": known.commit, "ETag": f'"{entry["oid"]}"'}
        if "lfs" not in entry:
            _send(request, 200, data, headers)
            return
        sha256 = entry["lfs"]["oid"]
        place = {"Location": f"http://localhost:{self.port}/cdn/{sha256}"}
        _send(request, 302, b"", headers | place | {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data))})

    def _send_content(self, request: BaseHTTPRequestHandler, sha256: str) -> None:
        contents = (data for repo in self.repositories.values() for data in repo.files.values())
        data = next(data for data in contents if hashlib.sha256(data).hexdigest() == sha256)
        if self.troubles.forged == sha256:
            data = bytes(reversed(data))
        first, status, headers = 0, 200, {"Accept-Ranges": "bytes"}
        if found := re.fullmatch(r"bytes=(\d+)-", request.headers.get("range") or ""):
            first, status = int(found[1]), 206
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        request.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data) - first)}).items():
            request.send_header(name, value)
        request.end_headers()
        self._write(request, data, first)

    def _write(self, request: BaseHTTPRequestHandler, data: bytes, first: int) -> None:
        """Piece by piece, as far as the troubles let it."""
        for at in range(first, len(data), PIECE_BYTES):
            if self.troubles.hold_at is not None and at >= self.troubles.hold_at:
                self.troubles.held.set()
                assert self.troubles.go_on.wait(PATIENCE_S)
            if self.troubles.cut_at is not None and at >= self.troubles.cut_at:
                self.troubles.cut_at, self.troubles.is_down = None, True
                request.close_connection = True
                return
            try:
                request.wfile.write(data[at : at + PIECE_BYTES])
                request.wfile.flush()
            except OSError:  # whoever asked has gone
                request.close_connection = True
                return


def _entry(path: str, data: bytes) -> dict[str, Any]:
    """A file in the hub's list; weights are large files, of which the hub has a hash for its other storage too."""
    git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git}
    if path.endswith(".safetensors"):
        sha256 = hashlib.sha256(data).hexdigest()
        entry |= {"lfs": {"oid": sha256, "size": len(data), "pointerSize": 134}, "xetHash": sha256}
    return entry


def _send_json(request: BaseHTTPRequestHandler, answer: Any) -> None:
    _send(request, 200, json.dumps(answer).encode(), {"Content-Type": "application/json"})


def _send(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
    request.send_response(status)
    for name, value in ({"Content-Length": str(len(body))} | dict(headers or {})).items():
        request.send_header(name, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


def tiny_repository(*, seed: int = 1) -> Repository:
    """A Qwen3 model as mlx-community publishes them: two files of weights, an index, a tokenizer; and a pickle."""
    generator = np.random.default_rng(seed)
    shards = {
        f"model-0000{number}-of-00002.safetensors": {
            f"model.layers.{number - 1}.weight": generator.random((128, 192 + 64 * number), dtype=np.float32)
        }
        for number in (1, 2)
    }
    weight_map = {name: shard for shard, arrays in shards.items() for name in arrays}
    config = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "max_position_embeddings": 4096}
    config |= {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config |= {"head_dim": 16}
    return Repository(
        {
            **{name: save(arrays) for name, arrays in shards.items()},
            "model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode(),
            "config.json": json.dumps(config).encode(),
            "tokenizer.json": (DEMO / "tokenizer.json").read_bytes(),
            "tokenizer_config.json": (DEMO / "tokenizer_config.json").read_bytes(),
            "chat_template.jinja": b"{{ messages }}",
            "pytorch_model.bin": b"a pickle",
            "modeling_evil.py": b"raise SystemExit",
            "README.md": b"# a model",
        }
    )


def single_file_repository(rows: int = 100) -> Repository:
    """A model with one file of weights, of 12 kB a row."""
    files = tiny_repository().files
    small = {path: data for path, data in files.items() if "safetensors" not in path}
    weights = np.arange(3000 * rows, dtype=np.float32).reshape(rows, 3000)
    return Repository(small | {"model.safetensors": save({"model.layers.0.weight": weights})})


@contextmanager
def running_hub() -> Iterator[Hub]:
    """One that stops at the end."""
    hub = Hub()
    try:
        yield hub
    finally:
        hub.close()
