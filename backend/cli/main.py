"""The console script `sae-workbench`: its options and commands.

Starts fast, because each command imports what it needs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from backend.cli.fields import add_fields, field_values
from backend.errors import ApiError
from backend.jobs.logs import plain
from backend.settings import Settings, load_settings
from sae_engine.errors import ConfigError, UserError
from sae_engine.schema.exports import EXPORT_FORMATS
from sae_engine.schema.lookup import LookupRank, TokenMatch

EXCLUSIVE = [
    ("grid", "load_checkpoint"),
    ("grid", "run_dir"),
    ("save_activations", "grid"),
    ("save_activations", "load_checkpoint"),
    ("save_activations", "load_activations"),
    ("save_activations", "eval_only"),
    ("save_activations", "run_dir"),
]
"""Pairs of options of `train` that exclude each other."""
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    parser = _parser()
    options, unknown = parser.parse_known_args(argv)
    try:
        if unknown:
            _refuse(parser, unknown[0])
        return options.action(options)
    except (UserError, ApiError) as error:
        print(f"sae-workbench: {plain(str(error))}", file=sys.stderr)
        return EXIT_USAGE
    except BrokenPipeError:  # whoever read the output has seen enough
        sys.stdout = None
        return 0
    except OSError as error:
        where = f" '{error.filename}'" if error.filename else ""
        print(f"sae-workbench: Cannot use{where}: {error.strerror or error}.", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _refuse(parser: argparse.ArgumentParser, argument: str) -> None:
    """Report an unknown argument; for one like `--sae.kk`, suggest similar fields."""
    from sae_engine.presets import unknown_field

    field = argument.removeprefix("--").partition("=")[0]
    if argument.startswith("--") and "." in field:
        raise ConfigError([unknown_field(field)])
    parser.error(f"unrecognized argument: {argument}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sae-workbench",
        description="Train sparse autoencoders on language models and inspect their features.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, action: Any, summary: str, **more: Any) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=summary, description=summary, allow_abbrev=False, **more
        )
        made.add_argument(
            "--data-dir", metavar="DIR", help="folder of all runs (SAE_WORKBENCH_DATA_DIR)"
        )
        made.set_defaults(action=action)
        return made

    up = command("up", _up, "Serve the pages and REST on one port.")
    up.add_argument("--host", help="address to listen on (127.0.0.1)")
    up.add_argument("--port", type=int, help="port to listen on (8501; 0 picks a free one)")

    train = command(
        "train",
        _train,
        "Train in this terminal; the run also appears in the browser.",
        usage="%(prog)s [RECIPE] [--config PATH] [--section.field VALUE ...] [OPTIONS]",
        epilog="Ctrl-C stops the run and still builds its features; a second one skips them.",
    )
    train.add_argument("recipe", nargs="?", metavar="RECIPE", help="a preset's name (tiny)")
    train.add_argument("--quick-test", action="store_true", help="the preset quick-test")
    train.add_argument(
        "--config",
        type=Path,
        metavar="PATH",
        help="a YAML file with all or part of a configuration",
    )
    train.add_argument("--name", help="name of the run")
    train.add_argument(
        "--grid", action="append", default=[], metavar="FIELD=V,V", help="train one SAE for every "
        "combination of values, such as --grid sae.k=16,32, sharing passes where possible",
    )  # fmt: skip
    train.add_argument(
        "--load-checkpoint", type=Path, metavar="PATH",
        help="continue from another run's checkpoint as a new run with its configuration; PATH is "
        "its folder, a file in it, or the run's id",
    )  # fmt: skip
    train.add_argument(
        "--eval-only", action="store_true",
        help="do not train: evaluate and index the SAE of --load-checkpoint or sae.pretrained",
    )  # fmt: skip
    train.add_argument(
        "--save-activations", type=Path, metavar="PATH",
        help="do not train: write the training activations into this new folder",
    )  # fmt: skip
    train.add_argument(
        "--load-activations", metavar="PATH",
        help="train on activation files instead of reading text (data.activations)",
    )  # fmt: skip
    train.add_argument(
        "--run-dir", type=Path, metavar="PATH", help="keep the run's files in this folder"
    )
    add_fields(train)

    imports = command(
        "import",
        _import,
        "Evaluate an SAE trained elsewhere, and build its features.",
        usage="%(prog)s PATH [--model NAME] [--layer N] [--section.field VALUE ...] [OPTIONS]",
        epilog="Choose the text to evaluate it on as for a run, such as --data.dataset "
        "my-text.jsonl.",
    )
    imports.add_argument(
        "path", metavar="PATH",
        help="file, folder or zip of an SAE, or one on the hub, as hub:OWNER/NAME/PATH; --model "
        "and --layer are needed if its files do not name them",
    )  # fmt: skip
    imports.add_argument("--model", metavar="NAME", help="the language model that the SAE reads")
    imports.add_argument("--layer", type=int, metavar="N", help="the layer that the SAE reads")
    imports.add_argument("--site", metavar="SITE", help="resid_post (default), mlp_out or attn_out")
    imports.add_argument("--name", help="name of the run")
    add_fields(imports)

    runs = command("runs", _runs, "List the runs.")
    runs.add_argument("--all", action="store_true", help="include archived runs")

    lookup = command("lookup", _lookup, "Show the features related to a token or a text.")
    lookup.add_argument("run", metavar="RUN", help="a run's id, a prefix of it, or its name")
    lookup.add_argument("text", help="a token, a text, or a regular expression (--match regex)")
    lookup.add_argument("--match", default="fold", choices=get_args(TokenMatch))
    lookup.add_argument("--exact-case", action="store_true", help="do not ignore case")
    lookup.add_argument("--rank", default="f1", choices=get_args(LookupRank))
    lookup.add_argument("--min-count", type=_count, default=5, metavar="N")
    lookup.add_argument("--limit", type=_count, default=20, metavar="N")
    lookup.add_argument(
        "--snapshot", type=int, metavar="STEP", help="step of the snapshot (newest)"
    )

    export = command(
        "export",
        _export,
        "Export a run's SAE or features.",
        epilog=" ".join(f"{name}: {info.summary}." for name, info in EXPORT_FORMATS.items()),
    )
    export.add_argument("run", metavar="RUN", help="a run's id, a prefix of it, or its name")
    export.add_argument("folder", type=Path, metavar="DIR", help="a new folder")
    export.add_argument("--format", default="saelens", choices=EXPORT_FORMATS)
    export.add_argument(
        "--snapshot", type=int, metavar="STEP", help="step of the snapshot (newest)"
    )
    export.add_argument(
        "--include-dead", action="store_true", help="include features that never fired"
    )

    push = command(
        "push",
        _push,
        "Push a run's SAE to the Hugging Face hub, with a model card.",
        epilog="Needs HF_TOKEN. Uploads everything in one commit: if it fails, nothing is pushed.",
    )
    push.add_argument("run", metavar="RUN", help="a run's id, a prefix of it, or its name")
    push.add_argument("target", metavar="TARGET", help="hub:OWNER/NAME, or a folder in it")
    push.add_argument(
        "--public", action="store_true", help="make a repository that is created public"
    )
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1 (got {number})")
    return number


_count.__name__ = "int"  # in argparse's message about text that is no number


def _settings(options: argparse.Namespace) -> Settings:
    return load_settings(
        data_dir=options.data_dir,
        host=getattr(options, "host", None),
        port=getattr(options, "port", None),
    )


def _up(options: argparse.Namespace) -> int:
    from rich.console import Console

    from backend.serve import serve

    serve(_settings(options), Console())
    return 0


def _train(options: argparse.Namespace) -> int:
    from backend.cli.checkpoints import checkpoint_of, source_of
    from backend.cli.options import grid_from, request_from
    from backend.cli.train import save_here, train_here

    for one, other in EXCLUSIVE:
        if getattr(options, one) and getattr(options, other):
            flags = [f"--{name.replace('_', '-')}" for name in (one, other)]
            raise UserError(f"{flags[0]} and {flags[1]} exclude each other; give one of them.")
    values = field_values(options)
    if options.load_activations is not None:
        values["data.activations"] = options.load_activations
    settings = _settings(options)
    source = source_of(options.load_checkpoint, settings) if options.load_checkpoint else None
    if options.eval_only and source is not None:
        values["sae.pretrained"] = str(source.sae.path)
    request = request_from(
        recipe="quick-test" if options.quick_test else options.recipe,
        path=options.config or (source.folder.config if source else None),
        values=values,
        name=options.name,
        suffix="" if source is None else "evaluated" if options.eval_only else "continued",
    )
    sae = request.config.get("sae", {}).get("pretrained")
    if isinstance(sae, str):
        from backend.jobs.imports import located, unzipped

        request.config["sae"]["pretrained"] = unzipped(settings, located(settings, sae))
    if options.eval_only and not sae:
        raise UserError("--eval-only needs an SAE: give --load-checkpoint PATH or sae.pretrained.")
    if options.save_activations is not None:
        return save_here(request, options.save_activations)
    checkpoint = None if source is None or options.eval_only else checkpoint_of(source)
    return train_here(
        settings,
        request,
        grid=grid_from(options.grid),
        checkpoint=checkpoint,
        run_dir=options.run_dir,
    )


def _import(options: argparse.Namespace) -> int:
    from backend.cli.options import import_from
    from backend.cli.train import train_here
    from backend.jobs.imports import located, unzipped

    settings = _settings(options)
    path = unzipped(settings, located(settings, options.path))
    values = field_values(options)
    own = {"name": options.model, "layer": options.layer, "site": options.site}
    values |= {f"model.{field}": value for field, value in own.items() if value is not None}
    return train_here(settings, import_from(path, values, options.name))


def _runs(options: argparse.Namespace) -> int:
    from backend.cli.tables import print_runs

    print_runs(_settings(options), archived=options.all)
    return 0


def _lookup(options: argparse.Namespace) -> int:
    from backend.cli.tables import print_lookup

    print_lookup(
        _settings(options),
        options.run,
        options.text,
        match=options.match,
        exact_case=options.exact_case,
        rank=options.rank,
        min_count=options.min_count,
        limit=options.limit,
        snapshot=options.snapshot,
    )
    return 0


def _export(options: argparse.Namespace) -> int:
    from backend.cli.exports import export_here

    left_out = export_here(
        _settings(options),
        options.run,
        options.folder,
        format=options.format,
        snapshot=options.snapshot,
        include_dead=options.include_dead,
    )
    print(f"Written: {options.folder}" + (f". {left_out}" if left_out else ""))
    return 0


def _push(options: argparse.Namespace) -> int:
    from backend.cli.exports import push_here

    settings = _settings(options)
    pushed = push_here(settings, options.run, options.target, private=not options.public)
    print(f"Pushed {len(pushed.files)} files to {pushed.target}: {pushed.url}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
