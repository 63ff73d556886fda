"""Every knob: its default, its environment name, and one line of why. Nobody else reads the environment.

A value comes from the first that names it: a flag, `VERBATIM_<NAME>`, the TOML file, the default. Decides
nothing with them.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

ENV_PREFIX = "VERBATIM_"


class SettingsError(ValueError):
    """A setting that cannot be; the message is one line that names it."""


class Settings(BaseSettings):
    """The knobs. Frozen: a running server does not change its mind."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid", allow_inf_nan=False)

    config: Path | None = Field(default=None, description="a TOML file with any of the settings below")
    model_dir: Path | None = Field(
        default=None, description="the model's folder, or its id on the hub; without one, the embedded model"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="format of weights and cache; auto is bfloat16 if the checkpoint is, else float32",
    )
    quantize: Literal["none", "int8", "int4"] = Field(
        default="none", description="weights of linear layers in fewer bits, rounded as they are loaded"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto takes the GPU if there is one"
    )
    kernels: Literal["auto", "amx", "avx512_bf16", "avx512", "avx2", "plain", "torch"] = Field(
        default="auto",
        description="what computes on the CPU: native code for what the processor has, or plain torch",
    )
    num_threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="compute threads on the CPU; 0 is one for each core",
    )
    kv_cache_tokens: int = Field(
        default=0,
        ge=0,
        le=2**40,
        description="tokens in the KV cache; 0: for max_num_seqs full sequences, within half of what is free",
    )
    max_batch_tokens: int = Field(
        default=512,
        ge=1,
        description="tokens in one step: larger is faster prefill, smaller is steadier decode",
    )
    max_num_seqs: int = Field(default=32, ge=1, le=4096, description="sequences that run at once")
    speculative_tokens: int = Field(
        default=0,
        ge=0,
        le=64,
        description="most tokens guessed a step from what a text repeats; 0 is off, 8 suits edits and quotes",
    )
    max_waiting: int = Field(
        default=256, ge=0, description="sequences that may wait; past it a request gets a 429"
    )

    watchdog_s: float = Field(
        default=8.0, gt=0, le=3600.0, description="a worker silent over its work for so long is replaced"
    )
    max_worker_deaths: int = Field(
        default=5, ge=1, description="in a row, without a token in between: then the server gives up"
    )

    host: str = Field(
        default="127.0.0.1", description="address to listen on; 0.0.0.0 opens the server to the network"
    )
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        description="keys that clients must send one of, separated by commas; none leaves the door open",
    )
    max_body_bytes: int = Field(
        default=2 * 1024 * 1024, ge=1, description="a longer body is refused before it is held in memory"
    )
    header_timeout_s: float = Field(
        default=10.0, gt=0, description="a request's headers must be whole by then"
    )
    body_timeout_s: float = Field(default=30.0, gt=0, description="a request's body must be whole by then")
    write_timeout_s: float = Field(
        default=30.0,
        gt=0,
        le=3600.0,
        description="a client that does not take what was written for it is cut off after so long",
    )
    max_connections: int = Field(
        default=4096,
        ge=16,
        le=2**20,
        description="open connections; past it, those go that wait for their clients longest",
    )
    sse_comment_s: float = Field(
        default=15.0,
        gt=0,
        description="silence after which a stream sends a comment, so that no proxy cuts it",
    )
    grace_s: float = Field(
        default=25.0, ge=0, le=86400.0, description="at SIGTERM, how long streams under way may go on"
    )

    log_format: Literal["auto", "text", "json"] = Field(
        default="auto", description="auto is text on a terminal and JSON lines elsewhere"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="what is worth a line"
    )

    @property
    def max_concurrent_requests(self) -> int:
        """How many may be under way: running or waiting."""
        return self.max_num_seqs + self.max_waiting

    @field_validator("model_dir", "host", mode="before")
    @classmethod
    def _refuse_emptiness(cls, value: object) -> object:
        # A variable that is set to nothing, as composed files have it, would be here, or every address.
        if value == "":
            raise ValueError("it is empty; leave it out for its default")
        return value

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: object) -> object:
        return tuple(key.strip() for key in value.split(",")) if isinstance(value, str) else value

    @field_validator("api_keys")
    @classmethod
    def _refuse_empty_keys(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if not all(key.get_secret_value() for key in keys):
            raise ValueError("an empty key would let everybody in")
        return keys

    @model_validator(mode="after")
    def _give_each_sequence_a_token(self) -> Self:
        if self.max_batch_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_batch_tokens is {self.max_batch_tokens}, it must be at least max_num_seqs, "
                f"{self.max_num_seqs}: every running sequence needs a token in each step"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the TOML file that a flag or the environment names after both."""
        path = init_settings().get("config") or env_settings().get("config")
        file = InitSettingsSource(settings_cls, _read_toml(Path(path)) if path else {})
        return init_settings, env_settings, file


def load_settings(**flags: object) -> Settings:
    """Return the settings in force, where `flags` are those given on the command line.

    Raises `SettingsError` for an unknown name, a value out of bounds or a file that cannot be read.
    """
    try:
        return Settings(**flags)  # type: ignore[arg-type]  # pydantic checks them
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            nearest = difflib.get_close_matches(name, Settings.model_fields, n=1, cutoff=0.0)[0]
            message = f"there is no such setting; the nearest is {nearest}"
        raise SettingsError(f"setting {name}: {message}" if name else message) from None


def unknown_variables() -> list[str]:
    """A sentence for each `VERBATIM_*` in the environment that is no setting.

    They are not refused: Kubernetes sets such names by itself for a service called verbatim.
    """
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(v for v in os.environ if v.upper().startswith(ENV_PREFIX) and v.upper() not in known)
    nearest = {v: difflib.get_close_matches(v.upper(), known, n=1, cutoff=0.0)[0] for v in unknown}
    return [f"environment variable {v} is no setting; the nearest is {nearest[v]}" for v in unknown]


def _read_toml(path: Path) -> dict[str, object]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"settings file {path}: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"settings file {path}: {error}") from None
    if "config" in table:
        raise SettingsError(f"settings file {path}: it cannot name another settings file")
    return table
