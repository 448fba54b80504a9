"""ServeConfig: every setting of the server, from flags, POLARGRID_LOCAL_* variables and a TOML file."""

from __future__ import annotations

import ipaddress
import logging
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator, Field, field_validator, model_validator

from polargrid_local.errors import ValidationError, did_you_mean
from polargrid_local.options import EngineOptions, refused

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

log = logging.getLogger(__name__)

ENV_PREFIX = "POLARGRID_LOCAL_"
ENV_NAMES = {"models_dir": "MODELS"}  # as the store has it

# Kubernetes puts the addresses of every service into the environment of every container: a service called polargrid-local
# gives POLARGRID_LOCAL_SERVICE_HOST, POLARGRID_LOCAL_PORT_8484_TCP_ADDR, ... and POLARGRID_LOCAL_PORT=tcp://10.0.0.1:8484.
_SERVICE_NAMES = re.compile(r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")


def _words(value: Any) -> Any:
    """`a,b` as ("a", "b"): what a variable can hold of a list."""
    return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value


def _pairs(value: Any) -> Any:
    """`a=b,c=d`, or a list of `a=b`, as {"a": "b", "c": "d"}."""
    value = _words(value)
    if isinstance(value, (list, tuple)):
        if any("=" not in item for item in value):
            raise ValueError("each alias must read NAME=MODEL")
        return dict(item.split("=", 1) for item in value)
    return value


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
Pairs = Annotated[dict[str, str], BeforeValidator(_pairs)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ServeConfig(EngineOptions):
    """Settings of `polargrid-local serve`, its engines' options among them; a flag wins over a variable, a variable over
    the file. Seconds and bytes."""

    model: Words = Field(
        default=(), description="models loaded at the start; the first answers requests that name none"
    )
    aliases: Pairs = Field(
        default={}, description="other names for models: NAME=MODEL; *=MODEL answers for any unknown name"
    )
    models_dir: Path | None = Field(default=None, description="where model files lie")
    on_demand: bool = Field(default=True, description="load any model of this disk when a request names it")
    keep_alive_s: float = Field(
        default=1800, allow_inf_nan=False, description="unload a model idle for so long; negative: never"
    )
    max_tokens_limit: int = Field(
        default=0, ge=0, lt=2**31, description="the most tokens of an answer; 0: what the context leaves"
    )
    memory_budget_bytes: int = Field(
        default=0, ge=0, description="for all loaded models; 0: 80 % of this machine's memory"
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

    def engine_options(self) -> dict[str, Any]:
        """Keyword arguments of AsyncEngine."""
        options = self.model_dump(include=set(EngineOptions.model_fields))
        return {**options, "models_dir": self.models_dir}

    @classmethod
    def load(
        cls,
        flags: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        file: str | Path | None = None,
    ) -> ServeConfig:
        """The settings of `flags` (None = not given), over `env`, over the TOML `file`; ValidationError names what is wrong."""
        env = env or {}
        values: dict[str, Any] = _read_toml(file or env.get(f"{ENV_PREFIX}CONFIG"))
        env = {name: text for name, text in env.items() if not (name.endswith("PORT") and _SERVICE_ADDRESS.match(text))}
        variables = {ENV_PREFIX + ENV_NAMES.get(name, name.upper()): name for name in cls.model_fields}
        for variable, name in variables.items():
            if (text := env.get(variable)) not in (None, ""):
                values[name] = text
        for variable in sorted(env):
            hint = _meant(variable, variables)
            if hint:
                log.warning("%s is no setting and does nothing%s", variable, hint)
        values.update({name: value for name, value in (flags or {}).items() if value not in (None, (), [])})
        try:
            return cls(**values)
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))[:80]
            if where in EngineOptions.model_fields:
                raise refused(error) from None
            if first["type"] == "extra_forbidden":
                hint = did_you_mean(where, cls.model_fields)
                raise ValidationError(f"{where}: unknown setting{hint}", param=where) from None
            problem = first["msg"].removeprefix("Value error, ")
            raise ValidationError(f"{where}: {problem}" if where else problem, param=where or None) from None


def _meant(variable: str, known: Collection[str]) -> str:
    """ "; did you mean ...?" for a variable that is nearly one of the `known`, "" for any other."""
    if not variable.upper().startswith(ENV_PREFIX) or variable in (*known, f"{ENV_PREFIX}CONFIG"):
        return ""
    rest = variable.upper().removeprefix(ENV_PREFIX)
    if _SERVICE_NAMES.fullmatch(rest):
        return ""
    hint = did_you_mean(rest, [name.removeprefix(ENV_PREFIX) for name in (*known, f"{ENV_PREFIX}CONFIG")])
    return hint.replace("'", f"'{ENV_PREFIX}", 1)


def is_loopback(host: str) -> bool:
    """True for localhost and the loopback addresses, brackets allowed."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _read_toml(path: str | Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValidationError(f"config file {path}: {error}", param="config") from None
