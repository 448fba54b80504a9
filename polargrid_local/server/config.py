"""ServeConfig: every setting of the server, from flags, POLARGRID_LOCAL_* variables and a TOML file."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from polargrid_local.options import EngineOptions
from polargrid_local.service.settings import ServiceSettings, Words

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ServeConfig(ServiceSettings):
    """Settings of `polargrid-local serve`; a flag wins over a variable, a variable over the file. Seconds and bytes."""

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
    api_key: str | None = Field(default=None, min_length=1, repr=False, description="required of every client when set")
    no_api_key: bool = Field(default=False, description="allow an address beyond loopback without a key")
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

    @field_validator("root_path")
    @classmethod
    def _one_form(cls, value: str) -> str:
        """Empty, or /a/b."""
        value = value.strip("/")
        if not re.fullmatch(r"[A-Za-z0-9._~/-]*", value) or "//" in value:
            raise ValueError(f"expected a path such as /llm, got {value!r}")
        return f"/{value}" if value else ""

    @model_validator(mode="after")
    def _no_open_door(self) -> ServeConfig:
        if not self.loopback and not self.api_key and not self.no_api_key:
            raise ValueError(
                f"host {self.host!r} is reachable from other machines and no api_key is set: set one, or say no_api_key"
            )
        return self

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
