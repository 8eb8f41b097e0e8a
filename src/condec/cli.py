"""The command line: parses, calls one function, prints."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote

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
from condec.retina.circuit import write_circuit_recording
from condec.run import FUNCTIONS, Link, Outcome, Run, chain, config, sweeps
from condec.run.plan import Plan
from condec.store import RunFolder, Store, Twin, is_twin, parse_twin

app = typer.Typer(
    name="condec",
    help="Contribution decomposition: why a network gives an output, by what its hidden units do.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Place = Annotated[
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
    place: Place, out: Out = None, again: Again = False, quiet: Quiet = False, debug: Debug = False
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
        plan = config.from_dict(config.DEMO_RETINA if retina else config.DEMO)
        plan = plan if out is None else replace(plan, out=out)
        if retina:  # the movie stands in the run folder, so that it can be exchanged
            plan = replace(plan, base=plan.out)
            write_circuit_recording(plan.out / "recording.npz")
        _whole_chain(Run(_with_noted(plan), progress=not quiet))


@app.command()
def collect(
    place: Place,
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
    control: Annotated[
        list[str] | None,
        typer.Option(
            help="random-weights[:FROM_MODULE] or shuffled-labels: stores that twin as well, "
            "beside those of the plan; may be given several times."
        ),
    ] = None,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Contributions of all inputs, into the store; then those of its controls.

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
        if control:
            added = map(parse_twin, control)
            changes["controls"] = tuple(dict.fromkeys((*plan.collect.controls, *added)))
        plan = replace(
            plan,
            out=out or plan.out,
            sites=tuple(sites) if sites else plan.sites,
            collect=replace(plan.collect, **changes),
        )
        _print_all([_do(Run(_with_noted(plan), progress=not quiet), "collect")])


@app.command()
def stats(place: Place, again: Again = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """Statistics of contributions and activations, site by site."""
    _one_link("stats", place, again=again, quiet=quiet, debug=debug)


@app.command()
def fit(place: Place, again: Again = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """A dictionary for every site, and its modes."""
    _one_link("fit", place, again=again, quiet=quiet, debug=debug)


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
        result = sweeps.sweep(sweeps.read(plan), progress=not quiet)
        print(result.words())
        print(f"{result.n_made} fits made, {result.n_kept} kept, {result.seconds:.1f} s")
        for file in result.files:
            print(file)


@app.command()
def control(place: Place, again: Again = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """Control curves: what ablating modes does to accuracy."""
    _one_link("control", place, again=again, quiet=quiet, debug=debug)


@app.command("map")
def map_command(
    place: Place, again: Again = False, quiet: Quiet = False, debug: Debug = False
) -> None:
    """Input-space maps of modes."""
    _one_link("map", place, again=again, quiet=quiet, debug=debug)


@app.command()
def retina(place: Place, again: Again = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """Modes beside the cells of a retina: correlations, combinations, receptive fields."""
    _one_link("retina", place, again=again, quiet=quiet, debug=debug)


@app.command()
def report(place: Place, again: Again = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """The static site of a run folder."""
    _one_link("report", place, again=again, quiet=quiet, debug=debug)


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


def _one_link(link: Link, place: Path, *, again: bool, quiet: bool, debug: bool) -> None:
    with _messages(debug=debug):
        run = Run(_with_noted(config.read(place)), progress=not quiet, again=again)
        _print_all([_do(run, link)])


def _with_noted(plan: Plan) -> Plan:
    """The plan with the controls that its run folder notes, and those that are complete there.

    Those of the folder come first, so that their order does not depend on the command.
    """
    noted: tuple[Twin, ...] = ()
    with suppress(CondecError):  # none yet, or a run.toml that is about to be replaced
        noted = config.read(plan.out).collect.controls
    every = dict.fromkeys((*noted, *plan.collect.controls, *_complete_twins(plan.out)))
    return replace(plan, collect=replace(plan.collect, controls=tuple(every)))


def _complete_twins(out: Path) -> Iterator[Twin]:
    """Controls of the store in a run folder that are stored there in whole."""
    folder = RunFolder(out)
    with suppress(CondecError):
        store = Store.open(folder.store)
        for path in sorted((out / "controls").glob("*/contributions.zarr")):
            with suppress(CondecError):
                twin, control = Store.open(path), parse_twin(unquote(path.parent.name))
                if twin.is_complete and is_twin(twin, store):
                    yield control


def _do(run: Run, link: Link) -> Outcome:
    """One link; only a plan that the run folder accepts is written into it."""
    if link != "collect":
        _ = run.store
        config.write(run.plan)
        return FUNCTIONS[link](run)
    if not run.folder.store.exists():
        run.check_devices()
        config.write(run.plan)
    outcome = FUNCTIONS[link](run)
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


def _print_all(outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        _print_outcome(outcome)


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
