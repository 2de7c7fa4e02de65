"""Where things live and who may reach them: one object, read from the environment."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from sae_engine.errors import UserError
from sae_engine.files import RunFolder

PREFIX = "SAE_WORKBENCH_"
SOURCE_ROOT = Path(__file__).resolve().parent.parent
STYLE_SHEET = SOURCE_ROOT / "frontend" / "style.css"
"""Style sheet of the pages, for exported pages too; the server does not import the pages."""


def default_data_dir() -> Path:
    """`data/local` of a checkout, else the user's data folder."""
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
    """Folder of the database and of every run's files."""
    read_dirs: Annotated[list[Path], NoDecode] = Field(default_factory=lambda: list[Path]())
    """More folders whose models and texts runs may read, separated by the path separator (`:`)."""
    database_url: str | None = None
    """SQLAlchemy URL of the database; unset is an SQLite file in the data folder."""
    host: str = Field("127.0.0.1", min_length=1)
    """Address to listen on; other than loopback needs a token."""
    port: int = Field(8501, ge=0, le=65_535)
    """Port to listen on; 0 takes a free one."""
    allowed_hosts: Annotated[list[str], NoDecode] = Field(default_factory=lambda: list[str]())
    """Further names under which a browser may reach the server, separated by commas."""
    token: SecretStr | None = None
    """Secret that REST clients and browsers must show."""
    devices: Annotated[list[str], NoDecode] = Field(default_factory=lambda: list[str]())
    """Where runs are trained, separated by commas: `cpu`, `cuda:0`, `cuda:1`; one that stands
    there twice takes two runs at a time. Unset is every GPU and the processor, one run each.
    """
    niceness: int = Field(10, ge=0, le=19)
    """How far what computes on the processor stands back behind the pages and other programs."""
    changes_per_minute: int = Field(1_200, ge=1)
    """How many requests that change something one address may send."""
    labels_base_url: str | None = Field(None, pattern=r"^https?://")
    """Where an OpenAI-compatible endpoint answers, such as `http://127.0.0.1:11434/v1`."""
    labels_model: str | None = None
    """The model there that proposes and judges labels."""
    labels_api_key: SecretStr | None = None
    """The key that the endpoint wants, if any."""
    labels_concurrency: int = Field(4, ge=1, le=256)
    """Questions that it is asked at the same time."""
    labels_input_price: float | None = Field(None, ge=0)
    """Price of a million tokens of question, for estimates of cost."""
    labels_output_price: float | None = Field(None, ge=0)
    """Price of a million tokens of answer."""
    inference_idle_seconds: float = Field(600, gt=0)
    """How long the language model of the playground stays in memory after the last question."""

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @field_validator("read_dirs", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        return [p for p in value.split(os.pathsep) if p] if isinstance(value, str) else value

    @field_validator("read_dirs")
    @classmethod
    def _absolute_each(cls, value: list[Path]) -> list[Path]:
        return [path.expanduser().resolve() for path in value]

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return [name.strip().lower() for name in value.split(",") if name.strip()]

    @field_validator("devices", mode="before")
    @classmethod
    def _split_devices(cls, value: object) -> object:
        return cls._split_names(value)

    @field_validator("devices")
    @classmethod
    def _known_devices(cls, value: list[str]) -> list[str]:
        for device in value:
            if not re.fullmatch(r"cpu|cuda:\d+", device):
                raise ValueError(
                    f"'{device}' is no device; write cpu or cuda:0, separated by commas"
                )
        return value

    @property
    def resolved_database_url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir / 'workbench.sqlite3'}"

    @property
    def supervisor_lock(self) -> Path:
        """Held by the one process that starts and judges jobs of this data folder."""
        return self.data_dir / "supervisor.lock"

    @property
    def inference_log(self) -> Path:
        """What the process that holds the language model says, since it was started last."""
        return self.data_dir / "inference.log"

    def run_folder(self, run_id: str) -> RunFolder:
        return RunFolder(self.data_dir / "runs" / run_id)

    def environment(self) -> dict[str, str]:
        """What a process of ours needs to find the same code and data; the secrets stay here."""
        secrets = {f"{PREFIX}TOKEN", f"{PREFIX}LABELS_API_KEY"}
        environment = {name: v for name, v in os.environ.items() if name not in secrets}
        environment[f"{PREFIX}DATA_DIR"] = str(self.data_dir)
        environment[f"{PREFIX}DATABASE_URL"] = self.resolved_database_url
        environment[f"{PREFIX}NICENESS"] = str(self.niceness)
        paths = [str(SOURCE_ROOT), environment.get("PYTHONPATH")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        environment |= {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
        return environment


def load_settings(**overrides: object) -> Settings:
    """Settings from the environment, with `overrides` that are not None; raises `UserError` in one
    sentence.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)  # pyright: ignore[reportArgumentType]
    except ValidationError as error:
        first = error.errors()[0]
        name = f"{PREFIX}{first['loc'][0]}".upper()
        raise UserError(f"{name} = {first['input']!r} cannot be used: {first['msg']}.") from None


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return False
