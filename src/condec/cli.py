"""The command line: parses, calls one function, prints."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from condec.attribution import parse_method
from condec.attribution.targets import parse_target
from condec.basis.errors import CondecError, OptionError
from condec.models import load_model
from condec.network import find_sites, inspect_model, presets_of
from condec.run import FUNCTIONS, Outcome, Plan, Run, chain, config, sweep
from condec.run.compare import compare_runs
from condec.run.links import function
from condec.run.plugins import brought
from condec.store import RunFolder, Store, Twin, is_twin, parse_twin

app = typer.Typer(
    name="condec",
    help="Contribution decomposition: why a network gives an output, by what its hidden units do.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Folder = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder, or a run.toml.", show_default=False)
]
Again = Annotated[bool, typer.Option("--again", help="Do it again although nothing has changed.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress; results only.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Out = Annotated[Path | None, typer.Option(help="Run folder, instead of the one in run.toml.")]


def main() -> None:
    """Entry point of the ``condec`` command."""
    app()


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        print(f"condec {metadata.version('condec')}")
        raise typer.Exit


@app.command("run")
def run_command(
    place: Folder, out: Out = None, again: Again = False, quiet: Quiet = False, debug: Debug = False
) -> None:
    """All links: collect, stats, fit, control, map, report."""
    with _messages(debug=debug):
        plan = config.read(place)
        plan = _with_noted(plan if out is None else replace(plan, out=out))
        _whole_chain(Run(plan, progress=not quiet, again=again))


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option(help="Run folder; runs/demo or runs/retina by default.")
    ] = None,
    retina: Annotated[
        bool, typer.Option("--retina", help="A circuit of the retina whose parts are known.")
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """All links, on the embedded model of handwritten digits, or on a circuit of the retina."""
    with _messages(debug=debug):
        if retina:
            from condec.run.retina import demo_plan

            plan = demo_plan(out)
        else:
            plan = config.from_dict(config.DEMO)
            plan = plan if out is None else replace(plan, out=out)
        _whole_chain(Run(_with_noted(plan), progress=not quiet))


@app.command("collect")
def collect_command(
    place: Folder,
    sites: Annotated[
        list[str] | None, typer.Option(help="Site pattern; may be given several times.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="ig:STEPS, ig:auto, actgrad, gradcam and others; see Choose a method."),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="topK, logit:INDEX, label or predicted; also ...:softmax.")
    ] = None,
    batch_size: Annotated[
        str | None, typer.Option(help="Samples in one pass, or auto: found by timing.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="model, bfloat16 or float16: what passes run in.")
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(help="Device that shares the batches; may be given several times."),
    ] = None,
    on_bad: Annotated[
        str | None, typer.Option(help="raise or skip: what to do about unusable inputs.")
    ] = None,
    twin: Annotated[
        list[str] | None,
        typer.Option(
            help="random-weights[:FROM_MODULE] or shuffled-labels: stores that twin as well, "
            "with those of the plan; may be given several times."
        ),
    ] = None,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Contributions of all inputs, into the store; then those of its twins.

    Goes on at the first missing shard where it was interrupted.
    """
    with _messages(debug=debug):
        plan = config.read(place)
        changes: dict[str, Any] = {}
        if method is not None:
            changes["method"] = parse_method(method)
        if target is not None:
            changes["target"] = parse_target(target)
        if batch_size is not None:
            changes["batch_size"] = config.parse_batch_size(batch_size)
        if precision is not None:
            changes["precision"] = precision
        if device:
            changes["devices"] = tuple(device)
        if on_bad is not None:
            changes["on_bad"] = on_bad
        if twin:
            added = map(parse_twin, twin)
            changes["twins"] = tuple(dict.fromkeys((*plan.collect.twins, *added)))
        plan = replace(
            plan,
            out=out or plan.out,
            sites=tuple(sites) if sites else plan.sites,
            collect=replace(plan.collect, **changes),
        )
        _print_outcome(_do(Run(_with_noted(plan), progress=not quiet), "collect"))


@app.command("sweep")
def sweep_command(
    plan: Annotated[
        Path,
        typer.Argument(
            metavar="PLAN", help="A sweep.toml, or a folder of results.", show_default=False
        ),
    ],
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Many dictionaries of one store, over learners, widths, sparsities and seeds.

    Fits that are done are kept; the same command goes on where it was interrupted.
    """
    with _messages(debug=debug):
        result = sweep.sweep(sweep.read(plan), progress=not quiet)
        print(sweep.sweep_words(result.table))
        print(f"{result.n_made} fits made, {result.n_kept} kept, {result.seconds:.1f} s")
        for file in result.files:
            print(file)


@app.command("compare")
def compare_command(
    first: Annotated[Path, typer.Argument(help="A run folder.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="Another one.", show_default=False)],
    debug: Debug = False,
) -> None:
    """What differs between two runs: recipe, statistics, quality, control, tables and arrays.

    The exit status is 0 where all is equal, 1 where something differs.
    """
    with _messages(debug=debug):
        found = compare_runs(first, second)
        for one in found:
            print(f"{one.part:10} {one.name}: {one.text}")
        print(f"{len(found)} differences" if found else "no difference")
        if found:
            raise typer.Exit(1)


@app.command()
def schema() -> None:
    """The JSON schema of run.toml, by which editors complete and check it."""
    print(json.dumps(config.schema(), indent=1))


@app.command()
def inspect(
    model: Annotated[
        str,
        typer.Argument(
            help="digits, circuit, torchvision:NAME, timm:NAME, huggingface:NAME, retina:FILE, "
            "python:FILE.py:FUNCTION, or a run.toml.",
            show_default=False,
        ),
    ],
    weights: Annotated[
        str | None, typer.Option(help="A .safetensors or .pt file, or 'default'.")
    ] = None,
    input_shape: Annotated[
        str | None, typer.Option(help="Shape of one input, for example 3,224,224.")
    ] = None,
    sites: Annotated[str | None, typer.Option(help="Only modules that match.")] = None,
    debug: Debug = False,
) -> None:
    """Every module: shape, parameters, and whether it is a cut; presets that fit the model.

    Through a cut passes all that flows from the input to the output: only there do the
    contributions of all units add up to the target.
    """
    with _messages(debug=debug):
        base, shape = Path(), _shape(input_shape)
        if Path(model).is_dir() or model.endswith(".toml"):
            plan = config.read(model)
            base, weights = plan.base, weights or plan.model.weights
            shape, model = shape or plan.model.input_shape, plan.model.spec
        loaded = load_model(model, weights, folder=base)
        shape = shape or loaded.input_shape
        if shape is None:
            raise OptionError(
                f"{model} does not tell the shape of its inputs; give it, for example "
                "--input-shape 3,224,224"
            )
        table = inspect_model(loaded.model, torch.zeros(1, *shape))
        if sites is not None:
            names = {site.name for site in find_sites(loaded.model, sites)}
            table = table[table["site"].str.partition("#")[0].isin(names)]
        _print_modules(table, f"{model}, one input of shape {' x '.join(map(str, shape))}")
        if sites is None:
            fit = (f"preset:{name}" for name in presets_of(loaded.model))
            print(f"presets: {', '.join(fit) or 'none fits'}")


def _add_command(link: str, doc: str | None) -> None:
    """Add the command of a link that has no options of its own."""

    @app.command(link, help=(doc or "").partition("\n")[0])
    def command(
        place: Folder, again: Again = False, quiet: Quiet = False, debug: Debug = False
    ) -> None:
        with _messages(debug=debug):
            run = Run(_with_noted(config.read(place)), progress=not quiet, again=again)
            _print_outcome(_do(run, link))


for _name in FUNCTIONS | brought():
    if _name != "collect":
        _add_command(_name, function(_name).__doc__)


def _with_noted(plan: Plan) -> Plan:
    """Return the plan with the twins its run folder notes, and those complete there.

    Those of the folder come first, so that their order does not depend on the command.
    """
    noted: tuple[Twin, ...] = ()
    with suppress(CondecError):  # none yet, or a run.toml that is about to be replaced
        noted = config.read(plan.out).collect.twins
    every = dict.fromkeys((*noted, *plan.collect.twins, *_complete_twins(plan.out)))
    return replace(plan, collect=replace(plan.collect, twins=tuple(every)))


def _complete_twins(out: Path) -> Iterator[Twin]:
    """Yield the twins of the store in a run folder that are stored there in whole."""
    folder = RunFolder(out)
    with suppress(CondecError):
        store = Store.open(folder.store)
        for name, path in folder.twins().items():
            with suppress(CondecError):
                stored, twin = Store.open(path), parse_twin(name)
                if stored.is_complete and is_twin(stored, store):
                    yield twin


def _do(run: Run, link: str) -> Outcome:
    """One link; only a plan that the run folder accepts is written into it."""
    if link != "collect":
        _ = run.store
        config.write(run.plan)
        return function(link)(run)
    if not run.folder.store.exists():
        run.check_devices()
        config.write(run.plan)
    outcome = function(link)(run)
    config.write(run.plan)
    return outcome


def _whole_chain(run: Run) -> None:
    if "collect" not in run.plan.links:
        _ = run.store
    elif not run.folder.store.exists():
        run.check_devices()
    if "collect" not in run.plan.links or not run.folder.store.exists():
        config.write(run.plan)
    for outcome in chain(run):
        _print_outcome(outcome)
        if outcome.link == "collect":
            config.write(run.plan)
    if run.folder.report.exists():
        print(f"Report: {run.folder.report.resolve()}")


def _print_outcome(outcome: Outcome) -> None:
    first = outcome.outputs[0] if outcome.outputs else None
    more = f" and {len(outcome.outputs) - 1} more" if len(outcome.outputs) > 1 else ""
    where = "" if first is None else f"  {first}{more}"
    print(f"{outcome.link:8} {outcome.state:8} {outcome.seconds:7.1f} s{where}")
    for note in outcome.notes:
        print(f"         note: {note}")
    sys.stdout.flush()


def _print_modules(table: Any, title: str) -> None:
    shown = Table(header_style="bold", box=None, pad_edge=False)
    shown.add_column("site", overflow="fold")
    shown.add_column("type")
    shown.add_column("shape", justify="right")
    shown.add_column("parameters", justify="right")
    shown.add_column("cut")
    for row in table.itertuples():
        shown.add_row(
            Text(row.site),
            Text(row.type),
            " x ".join(map(str, row.shape)),
            f"{row.parameters:,}",
            "cut" if row.cut else "",
        )
    print(title)
    # A pipe has no width of its own: long names stay whole there.
    Console(width=None if sys.stdout.isatty() else 160).print(shown)


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise OptionError(f"input shape {text!r}: expected numbers, for example 3,224,224")
    return shape


@contextmanager
def _messages(*, debug: bool) -> Iterator[None]:
    """One clean message for what condec raises on purpose, and for Ctrl-C."""
    try:
        yield
    except CondecError as error:
        if debug:
            raise
        print(f"condec: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        if debug:
            raise
        print("\ncondec: interrupted; the same command goes on where it stopped", file=sys.stderr)
        raise typer.Exit(130) from None


if __name__ == "__main__":
    main()
