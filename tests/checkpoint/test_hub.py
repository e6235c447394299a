"""Downloads from a hub that runs in this process: what is fetched, continued, checked, refused, and kept."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch

import hornbook
from hornbook.checkpoint import hub
from hornbook.cli.main import run
from hornbook.errors import BusyError, DamagedError, UserError
from hornbook.files import held
from hornbook.text.tokenizer import Tokenizer
from tests.reference.models import tokenized_model

COMMIT, OLDER = "0123456789abcdef0123456789abcdef01234567", "f" * 40
EXTRAS = {"README.md": b"# card", "pytorch_model.bin": b"\x80pickle", "modeling.py": b"raise SystemExit", "onnx/model.onnx": b"o",
          "flax_model.msgpack": b"f", "1_Pooling/config.json": b"{}", ".gitattributes": b"x", "training_args.pt": b"p"}  # fmt: skip
FETCHED = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}


@dataclass
class Repository:
    """What the hub holds and how it misbehaves. `answers`: a path's status code; `cut`: a file's bytes before the line breaks."""

    files: dict[str, bytes]
    names: list[Any] | None = None
    answers: dict[str, int] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    lie: dict[str, str] = field(default_factory=dict)
    linked: bool = True
    tagged: bool = True  # whether the link states the hash
    ranges: bool = True
    commit: Any = COMMIT
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def fetched(self) -> list[str]:
        return [path.rsplit("/", 1)[1] for path, _ in self.asked if "/resolve/" in path]


class Hub(BaseHTTPRequestHandler):
    repository: Repository

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        it, path = self.repository, unquote(self.path)
        it.asked.append((path, self.headers["Range"]))
        revisions = ("main", "v1.0", "refs/pr/1", COMMIT)
        if path in it.answers:
            self.reply(it.answers[path])
        elif path in [f"/api/models/some/model/revision/{name}" for name in revisions]:
            names = [*it.files] if it.names is None else it.names
            self.reply(200, json.dumps({"sha": it.commit, "siblings": [{"rfilename": name} for name in names]}).encode())
        elif path.startswith(prefix := f"/some/model/resolve/{COMMIT}/") and path.removeprefix(prefix) in it.files:
            name = path.removeprefix(prefix)
            content = it.files[name]
            tag = it.lie.get(name) or hashlib.sha256(content).hexdigest()
            if name.endswith(".safetensors") and it.linked:  # large files lie elsewhere, with an ETag of that place
                linked = {"X-Linked-Size": len(content), **({"X-Linked-Etag": f'"{tag}"'} if it.tagged else {})}
                self.reply(302, headers={"Location": f"/storage/{name}", **linked})
            else:
                self.send_file(name, content, tag)
        elif path.startswith("/storage/"):
            name = path.removeprefix("/storage/")
            self.send_file(name, it.files[name], "a" * 64)
        else:
            self.reply(404)

    def send_file(self, name: str, content: bytes, tag: str) -> None:
        it, start = self.repository, 0
        asked = self.headers["Range"]
        if asked and it.ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content) > 0:
            self.reply(416)
            return
        end = it.cut.pop(name, len(content))
        headers = {"ETag": f'"{tag}"', "Content-Length": len(content) - start}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.reply(206 if start else 200, content[start:end], headers)

    def reply(self, code: int, content: bytes = b"", headers: dict[str, Any] | None = None) -> None:
        self.send_response(code)
        for key, value in ({"Content-Length": len(content)} | (headers or {})).items():
            self.send_header(key, str(value))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A small model's folder, as files."""
    folder = tmp_path_factory.mktemp("published") / "model"
    hornbook.save(*tokenized_model("llama"), folder)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name in FETCHED}


@pytest.fixture
def there(published: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    repository = Repository({**published, **EXTRAS})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Hub,), {"repository": repository}))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    yield repository
    server.shutdown()
    server.server_close()
    thread.join()


def kept() -> Path:
    return hub.cache() / "some--model" / COMMIT


def refused(says: str, name: str = "hf:some/model", kind: type[UserError] = UserError) -> None:
    with pytest.raises(kind, match=says) as caught:
        hornbook.load(name)
    assert type(caught.value) is kind and caught.value.fix


@pytest.mark.parametrize("revision", ["", "@v1.0", "@refs/pr/1", f"@{COMMIT}"])
def test_only_what_a_loader_reads_is_fetched_and_pinned(revision: str, there: Repository) -> None:
    model, tokenizer = hornbook.load(f"hf:some/model{revision}")
    mine = tokenized_model("llama")
    ids = torch.arange(9)[None]
    assert torch.equal(model(ids), mine[0](ids)) and tokenizer.fingerprint == mine[1].fingerprint
    assert sorted(there.fetched()) == sorted(FETCHED)
    assert {path.name for path in kept().iterdir()} == {*FETCHED, ".complete", ".lock"}


def test_a_commit_in_the_cache_needs_no_network(there: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    hornbook.load("hf:some/model")
    asked = len(there.asked)
    hornbook.load("hf:some/model@v1.0")
    assert len(there.asked) == asked + 1  # which commit it is; no file
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    hornbook.load(f"hf:some/model@{COMMIT}")
    refused("cannot be reached")
    (kept() / "config.json").unlink()  # what was lost is fetched again
    refused("cannot be reached", f"hf:some/model@{COMMIT}")


def test_a_file_that_was_cut_in_the_cache_is_fetched_again(there: Repository) -> None:
    hornbook.load("hf:some/model")
    for name in FETCHED:
        (kept() / name).write_bytes(b"{")
    there.asked.clear()
    hornbook.load(f"hf:some/model@{COMMIT}")
    assert sorted(there.fetched()) == sorted(FETCHED)
    assert all((kept() / name).read_bytes() == there.files[name] for name in FETCHED)


@pytest.mark.parametrize("linked", [True, False])
def test_a_broken_download_is_continued(linked: bool, there: Repository) -> None:
    size, there.linked = len(there.files["model.safetensors"]), linked
    there.cut["model.safetensors"] = size // 3
    refused(f"stopped(.|\n)*model.safetensors ended at {size // 3:,} of {size:,}(.|\n)*same command again")
    assert (kept() / "model.safetensors.part").stat().st_size == size // 3
    there.asked.clear()
    hornbook.load("hf:some/model")
    assert set(there.fetched()) == {"model.safetensors"} and there.asked[-1][1] == f"bytes={size // 3}-"
    assert (kept() / "model.safetensors").read_bytes() == there.files["model.safetensors"]
    assert not (kept() / "model.safetensors.part").exists()


def test_a_server_without_ranges_begins_again(there: Repository) -> None:
    there.cut["model.safetensors"] = 1000
    refused("stopped")
    there.ranges = False
    hornbook.load("hf:some/model")
    assert (kept() / "model.safetensors").read_bytes() == there.files["model.safetensors"]


def test_a_kill_after_the_last_byte_is_mended(there: Repository) -> None:
    kept().mkdir(parents=True)
    (kept() / "model.safetensors.part").write_bytes(there.files["model.safetensors"])
    hornbook.load("hf:some/model")
    assert (kept() / "model.safetensors").read_bytes() == there.files["model.safetensors"]


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_wrong_hash_is_deleted_and_said(name: str, there: Repository) -> None:
    there.lie[name] = "b" * 64
    refused(rf"not the one(.|\n)*{name}(.|\n)*deleted", kind=DamagedError)
    assert not (kept() / name).exists() and not (kept() / f"{name}.part").exists() and not (kept() / ".complete").exists()
    there.lie.clear()
    hornbook.load("hf:some/model")


def test_the_tag_of_the_storage_is_no_hash_of_the_file(there: Repository) -> None:
    there.tagged = False
    model, _ = hornbook.load("hf:some/model")
    ids = torch.arange(9)[None]
    assert torch.equal(model(ids), tokenized_model("llama")[0](ids))
    assert sorted(there.fetched()) == sorted(FETCHED) and (kept() / ".complete").exists()


def test_a_hurt_beginning_is_found_when_the_rest_is_there(there: Repository) -> None:
    there.cut["model.safetensors"] = 1000
    refused("stopped")
    part = kept() / "model.safetensors.part"
    part.write_bytes(b"x" + part.read_bytes()[1:])
    refused("not the one", kind=DamagedError)
    assert not part.exists()
    hornbook.load("hf:some/model")


@pytest.mark.parametrize("name", ["../x.json", "/etc/x.json", "a/../../model.safetensors", "..\\config.json", "../../config.json"])
def test_names_outside_of_the_repository_are_refused(name: str, there: Repository, tmp_path: Path) -> None:
    there.names = ["config.json", "model.safetensors", name]
    refused("outside of itself", kind=DamagedError)
    assert there.fetched() == [] and not (tmp_path / "cache").exists()


def test_errors_of_the_hub_say_what_to_do(there: Repository) -> None:
    main = "/api/models/some/model/revision/main"
    refused("no such repository, revision or file", "hf:some/other")
    refused("no such repository, revision or file", "hf:some/model@nowhere")
    for code, says in ((401, "gated or private"), (403, "gated or private"), (500, "the hub refuses"), (429, "the hub refuses")):
        there.answers[main] = code
        refused(f"{says}(.|\n)*HTTP {code}")
    there.answers = {f"/some/model/resolve/{COMMIT}/config.json": 403}
    refused("gated or private(.|\n)*accept its terms")
    there.answers = {f"/some/model/resolve/{COMMIT}/config.json": 416}
    refused("the hub refuses(.|\n)*HTTP 416")
    there.answers.clear()
    there.names = ["config.json", "pytorch_model.bin", "README.md"]
    refused(r"no safetensors(.|\n)*pytorch_model\.bin")
    for name in ("hf:", "hf:gpt2", "hf:a/b/c", "hf:../x", "hf:a/..", "hf:a b/c", "hf:a/b@", "hf:-/x"):
        refused("no name of a repository", name)


@pytest.mark.parametrize("commit", ["../../x", "main", 3, None, COMMIT[:-1], COMMIT.upper()])
def test_an_answer_that_pins_nothing_is_refused(commit: Any, there: Repository, tmp_path: Path) -> None:
    there.commit = commit
    refused("cannot be read", kind=DamagedError)
    there.commit, there.names = COMMIT, [3]
    refused("cannot be read", kind=DamagedError)
    assert not (tmp_path / "cache").exists()


def test_another_commit_than_the_one_named_is_refused(there: Repository) -> None:
    there.commit = OLDER
    refused("another commit", f"hf:some/model@{COMMIT}", kind=DamagedError)


def test_an_address_that_is_no_web_address_is_refused(there: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc")
    refused("no web address")


def test_two_downloads_of_one_commit_do_not_meet(there: Repository) -> None:
    with held(kept()):
        refused("another process", kind=BusyError)


def test_a_short_name_is_said_and_a_local_folder_comes_first(
    there: Repository, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(hub.SHORT, "gpt2", "hf:some/model")
    assert run(["generate", "gpt2", "--prompt", "The", "--max-tokens", "2"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said.count("gpt2 is short for hf:some/model") == 1
    assert len([line for line in said if line.startswith("downloading")]) == len(FETCHED)
    asked = len(there.asked)
    hornbook.save(*tokenized_model("gpt2"), tmp_path / "gpt2")
    assert hornbook.load("gpt2")[0].config["model_type"] == "gpt2" and len(there.asked) == asked


def test_gpt2_is_the_published_one() -> None:
    assert hub.SHORT == {"gpt2": "hf:openai-community/gpt2"}


def test_a_vocabulary_is_fetched_where_the_user_says_and_checked(
    there: Repository, data_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = (data_folder / "tokenizers" / "tiktoken" / "r50k_base.tiktoken").read_bytes()
    there.files["r50k_base.tiktoken"], there.cut["r50k_base.tiktoken"] = raw, 1000
    address = f"{os.environ['HF_ENDPOINT']}storage/r50k_base.tiktoken"
    with pytest.raises(UserError, match="ended at 1,000"):
        hub.fetch_vocabulary("gpt2", address)
    assert run(["tokenizer", "fetch", "gpt2", "--url", address]) == 0
    said = capsys.readouterr()
    file = Path(said.out.strip())
    assert said.err == f"downloading {address} to {file}\n"
    assert file.read_bytes() == raw and there.asked[-1][1] == "bytes=1000-"
    asked = len(there.asked)
    assert hub.fetch_vocabulary("gpt2", address) == file and len(there.asked) == asked  # what is there is not asked for
    assert Tokenizer.load("gpt2").vocab_size == 50257
    there.files["o200k_base.tiktoken"] = raw
    with pytest.raises(DamagedError, match="not the one that was published"):
        hub.fetch_vocabulary("o200k", address.replace("r50k", "o200k"))
    for name, url, says in (("llama3", None, "licence"), ("gpt3", None, "did you mean 'gpt2'"), ("gpt2", "file:///x", "no web")):
        if url:
            file.unlink()
        with pytest.raises(UserError, match=says):
            hub.fetch_vocabulary(name, url)


def test_a_tokenizer_comes_without_the_weights_beside_it(there: Repository) -> None:
    """Also where there are none; and what was fetched so is not taken for the whole model."""
    weights = {name: there.files.pop(name) for name in [*there.files] if name.endswith(".safetensors")}
    folder = hub.download("hf:some/model", weights=False)
    assert Tokenizer.load(folder).vocab_size and not any(path.suffix == ".safetensors" for path in folder.iterdir())
    there.files |= weights
    assert hornbook.load("hf:some/model")[0]
    asked = len(there.asked)
    assert hub.download(f"hf:some/model@{COMMIT}", weights=False) == folder and len(there.asked) == asked
