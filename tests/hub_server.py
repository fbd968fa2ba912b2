"""A Hub on this machine: as much of huggingface.co's protocol as pushing and loading models and data sets needs.

with HubServer(token="hf_test") as hub:
    ...  # with HF_ENDPOINT=hub.url and HF_HUB_DISABLE_XET=1
hub.repositories["me/sticker"]["model_index.json"]  # bytes
hub.repositories["datasets/me/stickers"]["metadata.jsonl"]
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results


COMMIT = "0" * 40
USER = "me"
# A repository's address, of a model or a data set, in the API or not; what is asked of which revision; a path in it
PLACE = re.compile(r"(?:/api/models|/api)?/((?:datasets/)?[^/]+/[^/]+?)(?:/(resolve|tree|revision)/[^/]+)?(?:/(.*))?")
METADATA = {  # what the Hub knows of a card's head, and which types it takes
    **dict.fromkeys(("license", "library_name", "pipeline_tag", "base_model_relation"), str),
    **dict.fromkeys(("tags", "base_model", "datasets", "task_categories"), list),
    **dict.fromkeys(("configs", "model-index"), list),
}


class HubServer(ThreadingHTTPServer):
    """Serves while the `with` block lasts.

    Attributes:
        url: the endpoint.
        repositories: the files of each repository by path; fill it to serve a download.
        visibility: what the last creation asked for, "private", "public" or None.
        uploads: SHA-256 digests that came through LFS.
        refusal: a status that every request that writes gets instead of an answer, or None.
        large: from this size on, and for safetensors always, files go through LFS.
    """

    def __init__(self, token: str = "hf_test", large: int = 100_000) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.token = token
        self.large = large
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.visibility: str | None = None
        self.uploads: dict[str, bytes] = {}
        self.refusal: int | None = None

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


class HubHandler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def reply(self, body: object = b"", status: int = 200, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        headers = {"Content-Length": str(len(content)), "Content-Type": kind, "X-Repo-Commit": COMMIT} | headers
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # --- reading

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        match = PLACE.fullmatch(unquote(address.path))
        files = self.server.repositories.get(match[1]) if match else None
        if files is None:
            self.reply(status=404, X_Error_Code="RepoNotFound")
        elif match[2] == "resolve":
            self.serve_file(files.get(match[3]))
        elif match[2] == "tree":
            is_recursive = parse_qs(address.query).get("recursive", [""])[0].lower() == "true"
            entries = tree(files, PurePosixPath(match[3] or "."), is_recursive)
            self.reply(entries) if entries else self.reply(status=404, X_Error_Code="EntryNotFound")
        else:
            repo_id = match[1].removeprefix("datasets/")
            siblings = [{"rfilename": name} for name in sorted(files)]
            info = {"id": repo_id, "modelId": repo_id, "sha": COMMIT, "siblings": siblings, "tags": []}
            self.reply(info | {"private": False, "downloads": 0, "likes": 0})

    do_HEAD = do_GET

    def serve_file(self, content: bytes | None) -> None:
        if content is None:
            self.reply(status=404, X_Error_Code="EntryNotFound")
        else:
            self.reply(content, ETag=f'"{hashlib.sha256(content).hexdigest()}"')

    # --- writing

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = unquote(urlsplit(self.path).path)
        if self.server.refusal is not None:
            self.reply({"error": "refused"}, status=self.server.refusal)
        elif self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self.reply({"error": "Invalid username or password."}, status=401)
        elif path == "/api/validate-yaml":  # asked before a README is committed
            self.reply(check_front_matter(json.loads(body)["content"]))
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            self.reply({"transfer": "basic", "objects": [self.lfs_action(x) for x in json.loads(body)["objects"]]})
        elif match := re.fullmatch(r"/api/(?:models/)?((?:datasets/)?[^/]+/[^/]+)/(preupload|commit)/[^/]+", path):
            getattr(self, match[2])(match[1], body)
        else:
            self.reply({"error": "not found"}, status=404)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        digest = self.path.rpartition("/")[2]
        is_whole = hashlib.sha256(content).hexdigest() == digest
        if is_whole:
            self.server.uploads[digest] = content
        self.reply(status=200 if is_whole else 400)

    def create(self, asked: dict) -> None:
        repo_id = f"{asked.get('organization') or USER}/{asked['name']}"
        place = f"datasets/{repo_id}" if asked.get("type") == "dataset" else repo_id
        url = f"{self.server.url}/{place}"
        if place in self.server.repositories:
            self.reply({"error": "You already created this repo", "url": url}, status=409)
        else:
            self.server.repositories[place] = {}
            self.server.visibility = asked.get("visibility")
            self.reply({"url": url, "name": repo_id, "id": repo_id})

    def preupload(self, repo_id: str, body: bytes) -> None:
        def mode(file: dict) -> str:
            is_large = file["size"] >= self.server.large or file["path"].endswith(".safetensors")
            return "lfs" if is_large else "regular"

        files = json.loads(body)["files"]
        self.reply({"files": [{"path": f["path"], "uploadMode": mode(f), "shouldIgnore": False} for f in files]})

    def lfs_action(self, asked: dict) -> dict:
        action = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] in self.server.uploads:
            return action
        return action | {"actions": {"upload": {"href": f"{self.server.url}/lfs/{asked['oid']}"}}}

    def commit(self, repo_id: str, body: bytes) -> None:
        files = self.server.repositories[repo_id]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.uploads[value["oid"]]
        self.reply({"commitUrl": f"{self.server.url}/{repo_id}/commit/{COMMIT}", "commitOid": COMMIT})


def tree(files: dict[str, bytes], folder: PurePosixPath, is_recursive: bool) -> list[dict]:
    """Files and folders in a folder of a repository, as the Hub lists them."""
    contents = {PurePosixPath(name): content for name, content in files.items()}
    folders = {parent for name in contents for parent in name.parents} - {PurePosixPath()}
    return [
        {"path": str(path), "oid": hashlib.sha1(contents.get(path, b"")).hexdigest()}
        | ({"type": "file", "size": len(contents[path])} if path in contents else {"type": "directory"})
        for path in sorted([*contents, *folders])
        if path.parent == folder or (is_recursive and folder in path.parents)
    ]


def check_front_matter(readme: str) -> dict:
    """What is wrong with a README's metadata: keys that the Hub does not know, other types, evaluations without value.

    The Hub's own check knows licences and tasks by name, too.
    """
    _, front, _ = readme.split("---\n", 2)
    data = yaml.safe_load(front)
    if not isinstance(data, dict):
        return {"errors": [{"message": "metadata must be a mapping"}], "warnings": []}
    wrong = [name for name, value in data.items() if not isinstance(value, METADATA.get(name, ()))]
    try:
        model_index_to_eval_results(data.get("model-index", [{"name": "", "results": []}]))
    except (KeyError, TypeError):
        wrong.append("model-index")
    return {"errors": [{"message": f"{name} must be of another type"} for name in wrong], "warnings": []}
