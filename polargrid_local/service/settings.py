"""ServiceSettings: which models are served and how, from arguments, POLARGRID_LOCAL_* variables and a TOML file."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from typing_extensions import Self

from polargrid_local.api.parse import parse_request
from polargrid_local.api.requests import Sampling
from polargrid_local.errors import ValidationError, did_you_mean
from polargrid_local.models.adapters import split_name
from polargrid_local.models.names import readable, short_name
from polargrid_local.options import EngineOptions, refused

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

log = logging.getLogger(__name__)

ENV_PREFIX = "POLARGRID_LOCAL_"
ENV_NAMES = {"models_dir": "MODELS"}  # the name under which the store reads it too

FILE_SETTINGS = {"models"}  # which have no variable
# Settings of the HTTP server alone. They stand in the same file and environment, so whoever reads only the service's
# settings passes over these, and still refuses a name that is nobody's.
SERVER_SETTINGS = {
    "max_tokens_limit", "host", "port", "unix_socket", "api_key", "api_keys", "api_key_file", "no_api_key",
    "ssl_certfile", "ssl_keyfile", "ssl_keyfile_password", "allow_hosts", "allow_origins", "root_path",
    "strict_fields", "max_body_bytes", "max_json_depth", "idle_connection_s", "header_timeout_s", "body_timeout_s",
    "write_timeout_s", "request_timeout_s", "heartbeat_s", "drain_s", "log_level",
}  # fmt: skip

# Kubernetes puts the addresses of every service into the environment of every container. A service called
# polargrid-local gives POLARGRID_LOCAL_SERVICE_HOST, POLARGRID_LOCAL_PORT_8484_TCP_ADDR, ... and
# POLARGRID_LOCAL_PORT=tcp://10.0.0.1:8484. None of these is meant as a setting.
_SERVICE_NAMES = re.compile(r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")


def _words(value: Any) -> Any:
    """`a,b` as ("a", "b"): an environment variable holds a list as one text."""
    return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value


def _pairs(value: Any, form: str) -> Any:
    """`a=b,c=d`, or a list of `a=b`, as {"a": "b", "c": "d"}. `form`: what each is to look like."""
    value = _words(value)
    if isinstance(value, (list, tuple)):
        if any("=" not in item for item in value):
            raise ValueError(f"each must read {form}")
        return dict(item.split("=", 1) for item in value)
    return value


def _aliases(value: Any) -> Any:
    return _pairs(value, "NAME=MODEL")


# Fields of a request that may have defaults of a server's own: how tokens are chosen, and what becomes of reasoning.
MAY_DEFAULT = (
    *Sampling.model_fields, "seed", "stop", "reasoning_format", "reasoning_effort", "enable_thinking",
    "thinking_token_budget", "chat_template_kwargs",
)  # fmt: skip


def _defaults(value: Any) -> Any:
    """Values as requests hold them. Those of pairs, whose values are texts, are read as JSON where they are such."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = json.loads(value)
    texts = isinstance(value, (str, list, tuple))
    value = _pairs(value, "NAME=VALUE, such as temperature=0.2")
    if not isinstance(value, Mapping):
        return value
    checked: dict[str, Any] = {}
    for name, given in value.items():
        try:
            asked = {"messages": [{"role": "user", "content": "?"}], name: _of_text(given) if texts else given}
            request = parse_request("chat", asked)
        except ValidationError as error:
            raise ValueError(error.message) from None
        fields = request.model_fields_set - {"messages"}
        if not fields or not fields <= {*MAY_DEFAULT}:
            raise ValueError(f"{name[:80]} may have no default; these may: {', '.join(MAY_DEFAULT)}")
        checked |= {field: getattr(request, field) for field in fields}
    return checked


def _of_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


_SCALED = re.compile(r"(.+)@([+-]?\d{1,7}(?:\.\d+)?)", re.DOTALL)


def _adapters(value: Any) -> Any:
    """Each adapter's file and scale, of `PATH` or `PATH@SCALE`."""
    value = _pairs(value, "MODEL:NAME=PATH or MODEL:NAME=PATH@SCALE")
    if not isinstance(value, Mapping):
        return value
    adapters = {}
    for title, file in value.items():
        if not all(split_name(title)):
            raise ValueError(f"{title[:80]!r} must read MODEL:NAME, a model and a name for the adapter")
        match = _SCALED.fullmatch(file) if isinstance(file, str) else None
        adapters[title] = (match[1], float(match[2])) if match else (file, 1.0)
    return adapters


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
Pairs = Annotated[dict[str, str], BeforeValidator(_aliases)]
Defaults = Annotated[dict[str, Any], BeforeValidator(_defaults)]
Adapters = Annotated[dict[str, tuple[str, float]], BeforeValidator(_adapters)]


class ModelSettings(BaseModel):
    """What a model is served with: every model, or one of its own table [models."NAME"] in the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    chat_template: str | None = Field(
        default=None, description="Jinja source, or a name such as chatml, in place of the model's own template"
    )
    chat_template_file: Path | None = Field(default=None, description="a file with that source")
    defaults: Defaults = Field(
        default={}, description="of requests that leave a field out: NAME=VALUE, such as temperature=0.2"
    )

    @property
    def template(self) -> str | None:
        """The source or the name of the template that takes the place of the model's. Raises ValidationError."""
        if self.chat_template_file is None:
            return self.chat_template
        if self.chat_template is not None:
            raise ValidationError.at("chat_template_file", "cannot be given beside chat_template")
        try:
            return self.chat_template_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            problem = f"cannot read {self.chat_template_file}: {getattr(error, 'strerror', None) or error}"
            raise ValidationError.at("chat_template_file", problem) from None


class ServiceSettings(EngineOptions, ModelSettings):
    """The models that are served, and the options of their engines. Seconds and bytes."""

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
    memory_budget_bytes: int = Field(
        default=0, ge=0, description="for all loaded models; 0: 80 % of this machine's memory"
    )

    adapters: Adapters = Field(
        default={},
        description="LoRA adapters that are models of their own: MODEL:NAME=PATH or MODEL:NAME=PATH@SCALE",
    )
    allow_chat_template: bool = Field(default=False, description="let a request bring a chat_template of its own")
    models: dict[str, ModelSettings] = Field(
        default={}, description="tables of single models, in the file alone: templates and defaults"
    )

    def engine_options(self) -> dict[str, Any]:
        """Keyword arguments of AsyncEngine. Raises ValidationError for a template that cannot be read."""
        options = self.model_dump(include=set(EngineOptions.model_fields))
        templates = {self.source(name): one.template for name, one in self.models.items()} | {"*": self.template}
        adapters = {}
        for title, adapter in self.adapters.items():
            base, name = split_name(title)
            adapters[f"{self.source(base)}:{name}"] = adapter
        return {
            **options,
            "models_dir": self.models_dir,
            "chat_template": {name: source for name, source in templates.items() if source is not None},
            "adapters": adapters,
        }

    def source(self, name: str) -> str:
        """What the engine knows the model by that a setting calls `name`: an alias, or the name of a file that `model`
        gives the path of."""
        name = self.aliases.get(name, name)
        paths = {readable(short_name(Path(model).name)): model for model in self.model if Path(model).name != model}
        return paths.get(name, name)

    @classmethod
    def load(
        cls,
        flags: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        file: str | Path | None = None,
    ) -> Self:
        """The settings of `flags` (None = not given), over `env`, over the TOML `file`.

        Raises ValidationError, which names the setting that is wrong."""
        env = env or {}
        from_file = _read_toml(file or env.get(f"{ENV_PREFIX}CONFIG"))
        own = cls.model_fields
        values = {name: value for name, value in from_file.items() if name in own or name not in SERVER_SETTINGS}
        env = {name: text for name, text in env.items() if not (name.endswith("PORT") and _SERVICE_ADDRESS.match(text))}
        variables = {_variable(name): name for name in own if name not in FILE_SETTINGS}
        for variable, name in variables.items():
            if (text := env.get(variable)) not in (None, ""):
                values[name] = text
        known = {*variables, *map(_variable, SERVER_SETTINGS), f"{ENV_PREFIX}CONFIG"}
        for variable in sorted(env):
            if hint := _meant(variable, known):
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
                hint = did_you_mean(where, own)
                raise ValidationError(f"{where}: unknown setting{hint}", param=where) from None
            problem = first["msg"].removeprefix("Value error, ")
            raise ValidationError(f"{where}: {problem}" if where else problem, param=where or None) from None


def _variable(name: str) -> str:
    return ENV_PREFIX + ENV_NAMES.get(name, name.upper())


def _meant(variable: str, known: Collection[str]) -> str:
    """ "; did you mean ...?" for a variable that is nearly one of the `known`, "" for any other."""
    if not variable.upper().startswith(ENV_PREFIX) or variable in known:
        return ""
    rest = variable.upper().removeprefix(ENV_PREFIX)
    if _SERVICE_NAMES.fullmatch(rest):
        return ""
    hint = did_you_mean(rest, sorted(name.removeprefix(ENV_PREFIX) for name in known))
    return hint.replace("'", f"'{ENV_PREFIX}", 1)


def _read_toml(path: str | Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValidationError(f"config file {path}: {error}", param="config") from None
