"""The settings of all processes, read from the environment."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from sae_engine.errors import UserError
from sae_engine.files import RunFolder

PREFIX = "SAE_WORKBENCH_"
DATABASE = "workbench.sqlite3"
"""Name of the database in the data folder."""
SOURCE_ROOT = Path(__file__).resolve().parent.parent
STYLE_SHEET = SOURCE_ROOT / "frontend" / "style.css"
"""Style sheet of the pages, also used for exported pages; the backend cannot import it."""


def default_data_dir() -> Path:
    """`data/local` in a checkout, otherwise the user's data folder."""
    if (SOURCE_ROOT / "pyproject.toml").is_file():
        return SOURCE_ROOT / "data" / "local"
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "sae-workbench"


class Settings(BaseSettings):
    """The server's settings; each is the environment variable `SAE_WORKBENCH_<NAME>`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", use_attribute_docstrings=True
    )

    data_dir: Path = Field(default_factory=default_data_dir, validate_default=True)
    """Folder of the database and of the files of all runs."""
    read_dirs: Annotated[list[Path], NoDecode] = Field(default_factory=lambda: list[Path]())
    """Further folders from which runs may read models and texts, separated by `:`."""
    database_url: str | None = None
    """SQLAlchemy URL of the database; by default an SQLite file in the data folder."""
    host: str = Field("127.0.0.1", min_length=1)
    """Address to listen on; any but loopback requires a token."""
    port: int = Field(8501, ge=0, le=65_535)
    """Port to listen on; 0 picks a free one."""
    allowed_hosts: Annotated[list[str], NoDecode] = Field(default_factory=lambda: list[str]())
    """Further host names under which browsers may reach the server, separated by commas."""
    base_path: str = Field("", pattern=r"^(/[A-Za-z0-9._~-]+)*$")
    """Path below which a proxy serves the pages and the API, such as `/sae`."""
    token: SecretStr | None = None
    """Secret required from REST clients and browsers."""
    devices: Annotated[list[str], NoDecode] = Field(default_factory=lambda: list[str]())
    """Devices to train on, separated by commas, such as `cpu,cuda:0`; a device named twice trains
    two runs at a time. By default every GPU and the CPU, with one run on each.
    """
    ray_url: str | None = Field(None, pattern=r"^https?://")
    """URL of the dashboard of a Ray cluster; runs train on its machines instead of this one."""
    ray_token: SecretStr | None = None
    """Token of the cluster."""
    niceness: int = Field(10, ge=0, le=19)
    """Niceness of processes that compute on the CPU, in favor of the pages and other programs."""
    changes_per_minute: int = Field(1_200, ge=1)
    """Limit of requests that change something, per client address."""
    push_to: Annotated[list[str], NoDecode] = Field(default_factory=lambda: list[str]())
    """Owners, such as `me`, and repositories, such as `me/my-sae`, of the Hugging Face hub that
    REST clients may push to, separated by commas. By default none.
    """
    labels_base_url: str | None = Field(None, pattern=r"^https?://")
    """URL of an OpenAI-compatible endpoint, such as `http://127.0.0.1:11434/v1`."""
    labels_model: str | None = None
    """The endpoint's model that proposes and scores labels."""
    labels_api_key: SecretStr | None = None
    """API key of the endpoint."""
    labels_concurrency: int = Field(4, ge=1, le=256)
    """Number of concurrent requests to the endpoint."""
    labels_input_price: float | None = Field(None, ge=0)
    """Price of a million input tokens, for cost estimates."""
    labels_output_price: float | None = Field(None, ge=0)
    """Price of a million output tokens."""
    inference_idle_seconds: float = Field(600, gt=0)
    """How long the playground's language model stays in memory after the last request."""

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        try:
            return value.expanduser().resolve()
        except RuntimeError as error:  # an unknown user, a loop of links
            raise ValueError(str(error)) from None

    @field_validator("base_path", mode="before")
    @classmethod
    def _slashed(cls, value: object) -> object:
        path = value.strip().strip("/") if isinstance(value, str) else value
        return f"/{path}" if path else path

    @field_validator("ray_url", "labels_base_url")
    @classmethod
    def _usable_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        from httpx2 import URL, InvalidURL  # not for the command line's help

        try:
            url, port = URL(value), urlsplit(value).port  # `URL` accepts any number as a port
        except (InvalidURL, ValueError) as error:
            raise ValueError(f"it is no URL ({error})") from None
        if not url.host or port == 0:
            raise ValueError("it names no host, or port 0")
        return value

    @field_validator("token", "ray_token", "labels_api_key", mode="before")
    @classmethod
    def _stripped(cls, value: object) -> object:
        return value.strip() or None if isinstance(value, str) else value

    @field_validator("read_dirs", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        return [p for p in value.split(os.pathsep) if p] if isinstance(value, str) else value

    @field_validator("read_dirs")
    @classmethod
    def _absolute_each(cls, value: list[Path]) -> list[Path]:
        return [cls._absolute(path) for path in value]

    @field_validator("allowed_hosts", "devices", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return [name.strip().lower() for name in value.split(",") if name.strip()]

    @field_validator("push_to", mode="before")
    @classmethod
    def _split_repositories(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return [name.strip() for name in value.split(",") if name.strip()]

    @field_validator("push_to")
    @classmethod
    def _on_the_hub(cls, value: list[str]) -> list[str]:
        for name in value:
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name, re.ASCII):
                raise ValueError(
                    f"'{name}' is not an owner or OWNER/NAME of the hub; separate them by commas"
                )
        return value

    @field_validator("devices")
    @classmethod
    def _known_devices(cls, value: list[str]) -> list[str]:
        for device in value:
            if not re.fullmatch(r"cpu|cuda:\d+", device):
                raise ValueError(
                    f"'{device}' is not a device; use cpu or cuda:0, separated by commas"
                )
        return value

    @property
    def resolved_database_url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir / DATABASE}"

    @property
    def supervisor_lock(self) -> Path:
        """Lock file held by the process that supervises the runs of an SQLite database."""
        from sqlalchemy.engine import make_url  # not for the command line's help

        path = make_url(self.resolved_database_url).database or self.data_dir / DATABASE
        file = Path(path).resolve()  # beside the database, which two data folders may share
        return file.with_name("supervisor.lock" if file.name == DATABASE else f"{file.name}.lock")

    @property
    def inference_log(self) -> Path:
        """Log of the playground's language-model process since its last start."""
        return self.data_dir / "inference.log"

    def run_folder(self, run_id: str) -> RunFolder:
        return RunFolder(self.data_dir / "runs" / run_id)

    @property
    def scratch_parents(self) -> list[Path]:
        """Folders in which a killed process may have left a temporary one."""
        return [
            self.data_dir,
            *(self.data_dir / name for name in ("runs", "texts", "imports", "analyses")),
        ]

    def environment(self) -> dict[str, str]:
        """The environment of our child processes: same code and data, without secrets."""
        secrets = {f"{PREFIX}{name}" for name in ("TOKEN", "RAY_TOKEN", "LABELS_API_KEY")}
        environment = {name: v for name, v in os.environ.items() if name not in secrets}
        environment[f"{PREFIX}DATA_DIR"] = str(self.data_dir)
        environment[f"{PREFIX}DATABASE_URL"] = self.resolved_database_url
        environment[f"{PREFIX}NICENESS"] = str(self.niceness)
        paths = [str(SOURCE_ROOT), environment.get("PYTHONPATH")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        environment |= {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
        return environment


def load_settings(**overrides: object) -> Settings:
    """Settings from the environment and the `overrides` that are not None; raises `UserError`."""
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)  # pyright: ignore[reportArgumentType]
    except ValidationError as error:
        first = error.errors()[0]
        name = f"{PREFIX}{first['loc'][0]}".upper()
        reason = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{name} = {first['input']!r} is not valid: {reason}.") from None


def is_loopback(host: str) -> bool:
    """Whether an address or host name is a loopback one."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return False
