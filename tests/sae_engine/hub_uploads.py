"""What the small hub answers to uploads: repositories are created, large files stored by their
hash, and commits applied in one go.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.sae_engine.hub_server import Hub

LARGE = (".safetensors", ".npz", ".pt")
WRITE_TOKEN = "hf_write"

Answer = tuple[int, Any]
"""A status and a body for JSON."""


def answer_upload(
    hub: Hub, method: str, parts: list[str], body: bytes, token: str
) -> Answer | None:
    """None for a request that writes nothing."""
    is_write = method in ("PUT", "DELETE") or parts[:2] == ["api", "repos"]
    is_write |= bool({"preupload", "commit", "info"} & set(parts[2:])) or parts[0] == "lfs"
    if parts == ["api", "validate-yaml"]:
        return 200, {"errors": [], "warnings": []}
    if not is_write:
        return None
    hub.written.append(f"{method} {'/'.join(parts)}")
    if token != WRITE_TOKEN and parts[0] != "lfs":
        return 403, {"error": "You have no right to write here."}
    if any(part in "/".join(parts) for part in hub.refuses):
        return 400, {"error": "This step is refused."}
    if parts[:2] == ["api", "repos"]:
        return _repository(hub, parts[2], json.loads(body))
    if parts[0] == "lfs":
        hub.objects[parts[1]] = body
        return 200, {}
    if "preupload" in parts:
        return _modes(json.loads(body))
    if "commit" in parts:
        return _commit(hub, "/".join(parts[2:4]), body)
    return _batch(hub, json.loads(body))


def _repository(hub: Hub, verb: str, wanted: dict[str, Any]) -> Answer:
    name = f"{wanted['organization']}/{wanted['name']}"
    if verb == "delete":
        del hub.repositories["models", name]
        return 200, {}
    if ("models", name) in hub.repositories:
        return 409, {"error": "It exists."}
    hub.visibility[name] = wanted["visibility"]
    hub.add("models", name, {".gitattributes": b""})
    return 200, {"url": f"{hub.endpoint}/{name}"}


def _modes(wanted: dict[str, Any]) -> Answer:
    return 200, {
        "files": [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in wanted["files"]
        ]
    }


def _batch(hub: Hub, wanted: dict[str, Any]) -> Answer:
    objects = [
        thing
        | ({} if thing["oid"] in hub.objects else {"actions": {"upload": _upload(hub, thing)}})
        for thing in wanted["objects"]
    ]
    return 200, {"transfer": "basic", "objects": objects}


def _upload(hub: Hub, thing: dict[str, Any]) -> dict[str, str]:
    return {"href": f"{hub.endpoint}/lfs/{thing['oid']}"}


def _commit(hub: Hub, name: str, body: bytes) -> Answer:
    lines = [json.loads(line) for line in body.splitlines()]
    [repository] = hub.repositories["models", name]
    files = dict(repository.files)
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            content = hub.objects[value["oid"]]
            assert hashlib.sha256(content).hexdigest() == value["oid"]
            files[value["path"]] = content
    hub.repositories["models", name] = [repository._replace(files=files)]
    commit = hashlib.sha1(body).hexdigest()
    return 200, {
        "commitUrl": f"{hub.endpoint}/{name}/commit/{commit}",
        "commitOid": commit,
        "success": True,
    }
