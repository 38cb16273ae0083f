"""The command ``bayes-adapters``: what would be adapted, what is in a saved adapter, and one verified recording.

Exit code 0: done. 2: the command, a file or an option cannot be used; one line on the standard error stream says why.
130: interrupted (Ctrl-C). 141: the program that read the output stopped reading, as `head` does.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bayes_adapters._cli_checks import building, require_answer, require_output, require_samples
from bayes_adapters.errors import BayesAdaptersError

_INTERRUPTED = 130  # 128 + SIGINT
_CLOSED = 141  # 128 + SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        _write(options.run(options))
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        return _CLOSED
    except (BayesAdaptersError, OSError, MemoryError) as error:
        if options.debug:
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        sys.stderr.write(f"bayes-adapters: error: {_printable(text)}\n")
        return 2
    return 0


def _write(text: str) -> None:
    """Write to the standard output, which may know fewer characters than the text has, be full, or be closed."""
    require_output(sys.stdout)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        sys.stdout.write(f"{text}\n".encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # or Python's own flush at the end fails once more
        raise


def _printable(text: object) -> str:
    r"""Return text of a file with every character escaped that a terminal would act on, line ends too.

    >>> _printable("na\x1b[31mme\n")
    'na\\x1b[31mme\\n'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = argparse.ArgumentParser(prog="bayes-adapters", description="Bayesian low-rank adapters.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('bayes-adapters')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    targets = commands.add_parser("targets", parents=[common], help="list the layers that would get an adapter")
    targets.add_argument("model", metavar="MODEL_FOLDER", help="a Hugging Face model folder, or a name of the hub")
    which = targets.add_mutually_exclusive_group()
    which.add_argument(
        "--targets", nargs="+", default=["query", "value"], metavar="SUFFIX", help="name suffixes, or all-linear"
    )
    which.add_argument("--pattern", metavar="REGEX", help="a regular expression of whole paths, instead of --targets")
    targets.add_argument("--exclude", nargs="+", default=(), metavar="SUFFIX", help="name suffixes to leave out")
    targets.add_argument("--layers", nargs="+", type=int, metavar="N", help="keep these blocks only, counted from 0")
    targets.add_argument("--rank", type=int, default=8, help="rank r of the adapters (default: 8)")
    targets.set_defaults(run=_targets)

    show = commands.add_parser("show", parents=[common], help="say what is in a saved adapter")
    show.add_argument("adapter", type=Path, metavar="ADAPTER_DIR")
    show.set_defaults(run=_show)

    verify = commands.add_parser("verify", parents=[common], help="does this recording say this script?")
    verify.add_argument("recording", type=Path, metavar="RECORDING", help="a wav, aiff, flac, ogg, opus or mp3 file")
    verify.add_argument("script", metavar="SCRIPT", help="the text it should say")
    verify.add_argument("--adapter", type=Path, default=Path("runs/demo/adapter"), help="default: runs/demo/adapter")
    verify.add_argument("--samples", type=int, default=32, help="posterior draws (default: 32)")
    verify.add_argument(
        "--local-samples",
        type=int,
        default=1,
        metavar="K",
        help="draws of local latents with each of the weights, so that epistemic is of the weights alone (default: 1)",
    )
    verify.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    verify.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    verify.add_argument("--json", action="store_true", help="print one JSON object")
    verify.set_defaults(run=_verify)
    return parser


def _targets(options: argparse.Namespace) -> str:
    import torch

    from bayes_adapters.adapters._checks import check_options
    from bayes_adapters.adapters.targets import ALL_LINEAR, Targets, dimensions, select

    check_options(options.rank, 1.0, 0.0)
    backbone = _skeleton(options.model)
    names = ALL_LINEAR if options.targets == [ALL_LINEAR] else options.targets
    if options.pattern is not None:
        names = options.pattern
    paths = select(backbone, Targets(names, options.exclude, options.layers))
    rows, total = [], 0
    for path in paths:
        size = dimensions(backbone.get_submodule(path)) or (0, 0)
        count = options.rank * sum(size)
        total += count
        rows.append((_printable(path), f"{size[0]} -> {size[1]}", f"{count:,}"))
    whole = sum(p.numel() for p in backbone.parameters() if isinstance(p, torch.Tensor))
    return (
        f"{_table(('layer', 'shape', 'parameters'), rows)}\n\n{len(paths)} layers of {type(backbone).__name__}, rank "
        f"{options.rank}: {total:,} adapter parameters, {total / whole:.2%} of the backbone's {whole:,}"
    )


def _skeleton(name: str) -> Any:
    """Build the backbone without its weights."""
    import torch

    from bayes_adapters.backbones import locate
    from bayes_adapters.backbones._torchaudio import settle_torchaudio

    settle_torchaudio()
    from transformers import AutoConfig, AutoModel

    _quiet()
    folder = locate(name)
    # A model's folder can hold Python of its own; listing its layers must not run it, nor ask whether to.
    with building(name):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModel.from_config(config, trust_remote_code=False)


def _show(options: argparse.Namespace) -> str:
    from bayes_adapters.files import verified

    about = verified(options.adapter)
    config, base, kinds = about["model"]["config"], about["base"], about["weights"]["tensors"]
    layers = config["targets"]
    rows = [
        ("structure", about["model"]["structure"]),
        ("options", _pairs({k: v for k, v in config.items() if k not in {"targets", "num_data", "blocks"}})),
        ("likelihood", f"{about['likelihood']['name']} {_pairs(about['likelihood']['config'])}".strip()),
        ("guide", f"{about['guide']['name']} {_pairs(about['guide']['config'])}".strip()),
        *_temperature(about["guide"]),
        *(("head", f"{one['name']} {_pairs(one['config'])}") for one in [about.get("head")] if one),
        *_prior(about["prior"]),
        ("layers", f"{len(layers)}: {layers[0]} ... {layers[-1]}" if len(layers) > 1 else ", ".join(layers) or "none"),
        ("data", "not needed" if about["num_data"] is None else f"{about['num_data']:,} examples"),
        ("parameters", f"{_count(kinds, 'model.'):,} of the model, {_count(kinds, 'guide.'):,} of the guide"),
        ("base", f"{base['class']} {base['name_or_path']} ({base['parameters']:,} parameters, {base['dtype']})"),
        ("fingerprint", base["fingerprint"][:16]),
        ("versions", _pairs(about["versions"])),
        ("task", "none" if about["task"] is None else json.dumps(about["task"])),
        *(("calibration", f"{one['name']} {_pairs(one['config'])}") for one in about.get("calibration", [])),
        *(("pairs", f"{one['modality']} {_pairs(one['config'])}") for one in about.get("pair_densities", [])),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {_printable(value)}" for name, value in rows)


def _temperature(guide: dict[str, Any]) -> list[tuple[str, str]]:
    tau = guide.get("posterior_temperature")
    return [] if tau is None else [("temperature", f"{tau:g} of the posterior: predictions scale its covariance by it")]


def _prior(prior: dict[str, Any]) -> list[tuple[str, str]]:
    """One row for each different prior, with the number of its sites."""
    sites: dict[str, list[str]] = {}
    for site, entry in prior.items():
        numbers = _pairs({k: v if isinstance(v, (int, float)) else "per entry" for k, v in entry["parameters"].items()})
        sites.setdefault(f"{entry['family']} {numbers}", []).append(site)
    rows = [("prior", f"{text} on {len(s)} sites" if len(s) > 1 else f"{text} on {s[0]}") for text, s in sites.items()]
    return rows or [("prior", "none: the cores are fixed to I")]


def _verify(options: argparse.Namespace) -> str:
    from bayes_adapters.speech.verify import Verifier, VerifyTask

    _quiet()
    require_samples(options.samples, options.local_samples)
    VerifyTask.from_directory(options.adapter).check(options.recording, options.script)  # before models are loaded
    verifier = Verifier.from_directory(options.adapter, options.device)
    draws = {"samples": options.samples, "local_samples": options.local_samples, "seed": options.seed}
    verdict = verifier.verify(options.recording, options.script, **draws)
    numbers = (verdict.probability, verdict.total, verdict.aleatoric, verdict.epistemic, verdict.agreement or 0.0)
    require_answer(numbers)
    if options.json:
        return json.dumps(asdict(verdict) | {"calibration": verifier.task.calibration}, allow_nan=False)
    return (
        f"{verdict.words}\n\nprobability  {verdict.probability:.3f}\n"
        f"total        {verdict.total:.4f} nats\n"
        f"  aleatoric  {verdict.aleatoric:.4f} nats  (the pair leaves it open)\n"
        f"  epistemic  {verdict.epistemic:.4f} nats  (the model does not know)"
        f"{_more(verdict)}"
    )


def _more(verdict: Any) -> str:
    """Lines on what was fitted after training and saved with the adapter, each where it was."""
    from bayes_adapters.speech.advice import listed

    lines = []
    if verdict.answers is not None:
        promise = f"(the right one is among them in {100 * (1 - verdict.alpha):g} % of cases)"
        lines.append(f"answers      {listed(verdict.answers)}  {promise}")
    if verdict.agreement is not None:
        share = f"{100 * verdict.agreement_share:.2g} % of matching pairs agree no better"
        lines.append(f"agreement    {verdict.agreement:.2f} nats  ({share})")
    return "".join(f"\n{line}" for line in lines)


def _quiet() -> None:
    """Keep progress bars and notices of transformers off the screen; errors are raised anyway."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()


def _count(kinds: dict[str, str], prefix: str) -> int:
    from bayes_adapters.files import entries_of

    return sum(entries_of(kind) for name, kind in kinds.items() if name.startswith(prefix))


def _pairs(items: dict[str, Any]) -> str:
    return ", ".join(f"{key}={f'{value:g}' if isinstance(value, float) else value}" for key, value in items.items())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = []
    for first, *others in (head, *rows):
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(lines)
