"""ServeConfig: every setting of the server, from flags, POLARGRID_LOCAL_* variables and a TOML file."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, PrivateAttr, field_validator, model_validator

from polargrid_local.options import EngineOptions
from polargrid_local.server.keys import ApiKey, ApiKeys, Key, read_file
from polargrid_local.service.settings import ServiceSettings, Words

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ServeConfig(ServiceSettings):
    """Settings of `polargrid-local serve`; a flag wins over a variable, a variable over the file. Seconds and bytes."""

    model_config = ConfigDict(hide_input_in_errors=True)  # keys and passwords are among it

    isolation: Literal["auto", "thread", "process"] = Field(
        default="process", description=EngineOptions.model_fields["isolation"].description
    )
    max_tokens_limit: int = Field(
        default=0, ge=0, lt=2**31, description="the most tokens of an answer; 0: what the context leaves"
    )
    host: str = Field(
        default="127.0.0.1", description="127.0.0.1, ::1 or localhost: both loopback addresses, nothing else"
    )
    port: int = Field(default=8484, ge=0, le=65535)
    unix_socket: Path | None = Field(default=None, description="listen here, for this user alone, and nowhere else")
    api_key: Key | None = Field(
        default=None, repr=False, description="required of every client when set; its name is default"
    )
    api_keys: ApiKeys = Field(
        default={}, repr=False, description="further keys: NAME=KEY, or with rates NAME=KEY@REQUESTS/TOKENS per minute"
    )
    api_key_file: Path | None = Field(default=None, description="further keys, one a line, in the same form")
    no_api_key: bool = Field(default=False, description="allow an address beyond loopback without a key")
    ssl_certfile: Path | None = Field(
        default=None, description="serve https with this certificate, its chain behind it, in PEM form"
    )
    ssl_keyfile: Path | None = Field(default=None, description="its private key, where that is in a file of its own")
    ssl_keyfile_password: str | None = Field(default=None, repr=False, description="of a key that is encrypted")
    allow_hosts: Words = Field(
        default=(), description="further names of this server, as behind a proxy: NAME or NAME:PORT"
    )
    allow_origins: Words = Field(default=(), description="further origins of web pages, `null` for files, `*` for any")
    root_path: str = Field(
        default="", description="the path below which a proxy serves this server, where it leaves that on"
    )

    strict_fields: bool = Field(
        default=False, description="refuse fields that nobody knows, instead of naming them in a header of the answer"
    )
    max_body_bytes: int = Field(default=4 << 20, ge=1024)
    max_json_depth: int = Field(default=64, ge=8, le=512)
    idle_connection_s: Seconds = Field(default=75, description="a connection without a request is kept open this long")
    header_timeout_s: Seconds = 10
    body_timeout_s: Seconds = 30
    write_timeout_s: Seconds = Field(default=60, description="a reader that takes nothing for this long is let go")
    request_timeout_s: Seconds = Field(default=3600, description="the longest one request may take")
    heartbeat_s: Seconds = Field(default=15, description="a silent event stream gets a comment this often")
    drain_s: float = Field(
        default=30, ge=0, allow_inf_nan=False, description="at the end, running requests may take so much longer"
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    _keys: dict[str, ApiKey] = PrivateAttr(default_factory=dict)

    @field_validator("root_path")
    @classmethod
    def _one_form(cls, value: str) -> str:
        """Empty, or /a/b."""
        value = value.strip("/")
        if not re.fullmatch(r"[A-Za-z0-9._~/-]*", value) or "//" in value:
            raise ValueError(f"expected a path such as /llm, got {value!r}")
        return f"/{value}" if value else ""

    @model_validator(mode="after")
    def _one_holder_each(self) -> ServeConfig:
        """Before `_no_open_door`, which asks whether there are keys."""
        settings = {
            "api_key": {} if self.api_key is None else {"default": ApiKey(key=self.api_key)},
            "api_keys": self.api_keys,
            "api_key_file": {} if self.api_key_file is None else read_file(self.api_key_file),
        }
        names: dict[str, str] = {}  # by key
        for setting, keys in settings.items():
            for name, key in keys.items():
                if name in self._keys:
                    raise ValueError(f"{setting}: the name {name!r} has a key already")
                if key.key in names:
                    raise ValueError(f"{setting}: {name!r} has the same key as {names[key.key]!r}")
                self._keys[name], names[key.key] = key, name
        return self

    @model_validator(mode="after")
    def _no_open_door(self) -> ServeConfig:
        if not self.loopback and not self._keys and not self.no_api_key:
            raise ValueError(
                f"host {self.host!r} is reachable from other machines and no api_key is set: set one, or say no_api_key"
            )
        return self

    @model_validator(mode="after")
    def _certificate_first(self) -> ServeConfig:
        if self.ssl_certfile is None and (self.ssl_keyfile or self.ssl_keyfile_password is not None):
            raise ValueError("ssl_keyfile and ssl_keyfile_password go with an ssl_certfile, and none is set")
        return self

    @property
    def keys(self) -> dict[str, ApiKey]:
        """All keys, by name."""
        return self._keys

    @property
    def loopback(self) -> bool:
        """Nobody beyond this machine can connect."""
        return self.unix_socket is not None or is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """True for localhost and the loopback addresses, brackets allowed."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
