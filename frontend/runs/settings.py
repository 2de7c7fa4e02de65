"""All settings of a run, those that differ from a preset marked, and what it was started with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from frontend.html.blocks import table
from frontend.html.format import UNSET, counted, gibibytes
from frontend.html.tokens import escaped
from frontend.runs.setting_text import setting_text
from sae_engine.schema.config import RunConfig
from sae_engine.schema.fields import FieldSpec, Value, differing, field_specs, value_text, values_of
from sae_engine.schema.machine import Environment, Preset
from sae_engine.schema.runs import Run


class Setting(NamedTuple):
    """One setting of a run."""

    spec: FieldSpec
    value: str
    preset: str
    """The preset's value."""
    differs: bool

    def matches(self, text: str) -> bool:
        """Whether its name, value or help contains each word of a search."""
        content = f"{self.spec.path} {self.value} {self.spec.help}".lower()
        return all(word in content for word in text.lower().split())


def nearest_preset(config: RunConfig, presets: Sequence[Preset]) -> Preset:
    """The preset that a configuration differs from in the fewest settings."""
    return min(presets, key=lambda preset: len(differing([config, preset.config])))


def settings_of(run: Run, preset: Preset) -> list[Setting]:
    """Every setting but the name, in the order of definition."""
    base = values_of(preset.config)
    changed = differing([run.config, preset.config])
    return [
        Setting(
            spec, setting_text(run, path, unset=UNSET), _text(path, base[path]), path in changed
        )
        for path, spec in field_specs().items()
        if path != "name"
    ]


def settings_table(settings: Sequence[Setting], preset: str) -> str:
    """A row for each setting, with the preset's value where that differs."""
    head = f"<th>Setting</th><th>Value</th><th>Preset {escaped(preset)}</th>"
    return table(head, "".join(map(_row, settings)), css="small settings")


def _row(setting: Setting) -> str:
    spec = setting.spec
    css = ' class="changed"' if setting.differs else ""
    base = escaped(setting.preset) if setting.differs else '<span class="wb-muted">same</span>'
    return (
        f'<tr{css} title="{escaped(spec.help)}"><td><code>{escaped(spec.path)}</code></td>'
        f"<td>{escaped(setting.value)}</td><td>{base}</td></tr>"
    )


def _text(path: str, value: Value) -> str:
    return UNSET if value is None else value_text(path, value)


def environment_list(found: Environment) -> str:
    """The recorded versions and machine as a list of facts."""
    facts = {
        "SAE Workbench": found.version,
        "Commit": found.commit or "not a git checkout",
        "Python": found.python,
        **found.packages,
        "Machine": found.hostname,
        "System": found.system,
        "Processor": f"{found.cpu} ({counted(found.num_cpus, 'CPU')})",
        "Memory": gibibytes(found.memory_bytes),
        "GPU": ", ".join(found.gpus) or "none",
        "Started": f"{found.recorded_at:%Y-%m-%d %H:%M:%S} UTC",
    }
    rows = "".join(f"<dt>{escaped(k)}</dt><dd>{escaped(v)}</dd>" for k, v in facts.items())
    return f'<dl class="wb-facts wrapped">{rows}</dl>'
