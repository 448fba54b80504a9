"""The hub: where Hugging Face, or its mirror at $HF_ENDPOINT, keeps the file of a source, and what it says of it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from urllib.parse import urljoin, urlsplit

from polargrid_local.errors import NetworkError, NotFoundError
from polargrid_local.models.catalog import HubSource
from polargrid_local.models.transfer import Remote
from polargrid_local.shards import Shard, shard_of

# huggingface_hub is imported where it is used: it brings sockets and TLS, which looking up a name must not cost.


def locate(source: HubSource) -> Remote:
    """Ask the hub where the bytes are and what they are. Raises NotFoundError, NetworkError, ConnectionError."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, but not in its __all__

    endpoint = _endpoint()
    url = hf_hub_url(source.repo, source.member, revision=source.revision, endpoint=endpoint)
    where = f"hf:{source.repo}/{source.member}"
    with _typed_errors(where):
        meta = get_hf_file_metadata(url, endpoint=endpoint)
    location = urljoin(url, meta.location)
    if urlsplit(location).scheme not in {"https", urlsplit(url).scheme}:
        raise NetworkError(f"{where}: refused to follow {location[:100]!r}, neither https nor the hub's own scheme")
    etag = meta.etag or ""
    sha256 = etag if re.fullmatch(r"[0-9a-f]{64}", etag) else None
    # The token is for the hub alone; storage behind it has signed addresses.
    same_host = urlsplit(location).netloc == urlsplit(url).netloc
    headers = build_hf_headers() if same_host else build_hf_headers(token=False)
    identity = hashlib.sha256(f"{etag}|{meta.size}|{'' if etag else meta.commit_hash}".encode()).hexdigest()[:16]
    return Remote(location, headers, identity, meta.size, sha256)


def stated_bytes(source: HubSource) -> int | None:
    """The length of a file; None where the hub does not answer or does not say. Raises NotFoundError, NetworkError."""
    with contextlib.suppress(ConnectionError):  # the download itself tries more than once, and says what is wrong
        return locate(source).n_bytes
    return None


def find_shards(source: HubSource) -> Shard | None:
    """The first shard of a model that lies on the hub in several files under this name; its stem has the folder in it.
    None if there is no such model, or the hub does not list its files. Raises NetworkError."""
    from huggingface_hub import HfApi

    try:
        with _typed_errors(f"hf:{source.repo}"):
            files = HfApi(endpoint=_endpoint()).list_repo_files(source.repo, revision=source.revision)
    except (ConnectionError, NotFoundError):
        return None
    for file in sorted(files):
        shard = shard_of(file)
        if shard and shard.stem == source.member.removesuffix(".gguf") and not set(shard.names()).difference(files):
            return shard
    return None


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


@contextlib.contextmanager
def _typed_errors(where: str) -> Iterator[None]:
    """huggingface_hub's errors as ours; ConnectionError for what may pass."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as cause:
        raise NetworkError(
            f"{where}: the hub wants a login and an accepted licence; set HF_TOKEN", cause=cause, code="gated_model"
        ) from cause
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError) as cause:
        raise NotFoundError(f"{where}: no such file on the hub", code="model_not_found", param="model") from cause
    except OfflineModeIsEnabled as cause:
        raise NetworkError(f"{where}: HF_HUB_OFFLINE is set", cause=cause, code="offline") from cause
    except Exception as cause:  # its transport is another library in each major version, with its own tree of errors
        raise ConnectionError(f"{where}: {cause}") from cause
