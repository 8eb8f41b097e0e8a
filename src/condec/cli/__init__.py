"""The command line: parses, calls one function, prints."""

import io
import json
import math
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from typer.core import TyperGroup

from condec.basis import signals
from condec.basis.errors import CondecError, DependencyError, OptionError, command, printable
from condec.basis.files import user_path
from condec.basis.locks import held
from condec.basis.trust import gated
from condec.models import load_model
from condec.network import find_sites, inspect_model, presets_of
from condec.run import Outcome, Plan, Run, chain, config, sweep, verify
from condec.run.beforehand import check_run
from condec.run.compare import compare_runs
from condec.run.costs import Workers, costs
from condec.run.engines import engine_of
from condec.run.explain import explain_inputs
from condec.run.links import function
from condec.run.part import Part, collect_part
from condec.run.plugins import link_names
from condec.run.status import status_lines
from condec.store import RunFolder
from condec.store.batches import is_out_of_memory


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """Print one clean message for what condec raises on purpose, and for Ctrl-C."""
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            if ctx.params["debug"]:
                raise
            code = signals.exit_code(error)
            if code is None and isinstance(error, CondecError):
                code = 2
                print(f"condec: {error}", file=sys.stderr)
            elif code is None and is_out_of_memory(error):
                code, problem = 2, printable(str(error).partition("\n")[0])
                cure = "give a smaller batch_size in the section of that link"
                print(f"condec: memory does not suffice ({problem}); {cure}", file=sys.stderr)
            if code is None:
                raise
            raise typer.Exit(code) from None


app = typer.Typer(
    name="condec",
    help="Contribution decomposition: why a network gives an output, by what its hidden units do.",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Source = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder, or a run.toml.", show_default=False)
]
Again = Annotated[bool, typer.Option("--again", help="Do it again although nothing has changed.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress; results only.")]
Trust = Annotated[
    bool, typer.Option("--trust-code", help="Run the code that a run folder names; remember that.")
]
Out = Annotated[Path | None, typer.Option(help="Run folder, instead of the one in run.toml.")]
_MODELS = (
    "digits, circuit, torchvision:NAME, timm:NAME, huggingface:NAME, retina:FILE, "
    "python:FILE.py:FUNCTION, or a run.toml."
)


def main() -> None:
    """Answer a command of a terminal; `condec.__main__` starts it."""
    signals.end_soon()
    warnings.formatwarning = _warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names need not be in the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    finally:
        try:
            print(end="", flush=True)
        except BrokenPipeError:  # of `condec inspect digits | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print(text: object = "") -> None:
    """Print what may hold names from anywhere: their control characters are escaped."""
    print(printable(str(text)))


def _warning(message: object, *_: object, **__: object) -> str:
    return f"condec: {printable(str(message))}\n"


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Show the version."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
) -> None:
    if version:
        _print(f"condec {metadata.version('condec')}")
        raise typer.Exit


@app.command("run")
def run_command(
    source: Source, out: Out = None, again: Again = False, quiet: Quiet = False,
    trust_code: Trust = False,
    check: bool = typer.Option(
        False, "--check", help="Only check what can be known, and say what each link takes."
    ),
    engine: str | None = typer.Option(None, help="local or ray: workers that do tasks ahead."),
    workers: int | None = typer.Option(None, help="At most so many workers."),
    address: str | None = typer.Option(None, help="Of a Ray cluster; auto: the one that is here."),
) -> None:  # fmt: skip
    """All links: collect, stats, fit, control, map, explain, report.

    All that can be known is checked first. A link that the model or the data do not allow is left
    out, with a note.
    """
    plan = config.read(source)
    given = {"kind": engine, "workers": workers, "address": address}
    changes = {key: value for key, value in given.items() if value is not None}
    engine_plan = config.changed(plan.engine, "engine", changes)
    plan = _with_noted(replace(plan, out=out or plan.out, engine=engine_plan))
    run = _run_of(plan, quiet, again, trust_code, address or "")
    left_out = check_run(run)
    if not check:
        _whole_chain(run, left_out)
        return
    _print(costs(run, left_out))


@app.command("plan")
def plan_command(
    source: Source,
    workers: int | None = typer.Option(
        None, help="How many share the work, instead of the plan's."
    ),
    price: float = typer.Option(0.0, help="Of one worker for an hour."),
    images_per_second: float | None = typer.Option(
        None, help="Inputs that a worker collects, instead of a batch that is timed here."
    ),
    trust_code: Trust = False,
) -> None:
    """What every link of a run takes: time, memory, disk and money; nothing is made."""
    run = Run(_with_noted(config.read(source)), progress=False, trust_code=trust_code)
    engine = run.plan.engine
    known = engine.workers if engine.kind != "here" and engine.workers else 1
    number = known if workers is None else workers
    on = Workers(number=number, price=price, images_per_second=images_per_second)
    _print(costs(run, check_run(run), on))


@app.command()
def demo(
    out: Path | None = typer.Option(None, help="Run folder; runs/demo or runs/retina by default."),
    retina: bool = typer.Option(False, "--retina", help="A retina whose parts are known."),
    quiet: Quiet = False,
) -> None:
    """All links, on the embedded model of handwritten digits, or on a circuit of the retina."""
    if retina:
        from condec.retina.link import demo_plan

        plan = demo_plan(out)
    else:
        plan = config.from_dict(config.DEMO)
        plan = replace(plan, out=out or plan.out)
    _whole_chain(Run(_with_noted(plan), progress=not quiet))


@app.command()
def collect(
    source: Source,
    sites: list[str] = typer.Option([], help="Site pattern; may be given several times."),
    method: str | None = typer.Option(None, help="ig:STEPS, ig:auto, actgrad, gradcam and others."),
    target: str | None = typer.Option(None, help="topK, logit:INDEX, label, predicted and others."),
    batch_size: str | None = typer.Option(None, help="Samples in a pass, or auto: by timing."),
    precision: str | None = typer.Option(None, help="model, bfloat16 or float16: of the passes."),
    device: list[str] = typer.Option([], help="Device that shares the batches; one or more."),
    on_bad: str | None = typer.Option(None, help="raise or skip: inputs that cannot be used."),
    rows: str | None = typer.Option(None, help="samples or positions: keep some of these as well."),
    keep: int | None = typer.Option(None, help="Positions of a sample that are kept."),
    twin: list[str] = typer.Option(
        [], help="random-weights[:FROM_MODULE] or shuffled-labels, besides those of the plan."
    ),
    part: str | None = typer.Option(
        None, help="K/N, slurm or torchrun: only shards of that part, and what others leave."
    ),
    out: Out = None,
    quiet: Quiet = False,
    trust_code: Trust = False,
) -> None:
    """Contributions of all inputs, into the store; then those of its twins.

    Goes on where it was interrupted at the first missing shard, which is begun again.
    """
    of = None if part is None else Part.parse(part)
    plan = config.read(source)
    size: object = int(batch_size) if batch_size and batch_size.isdecimal() else batch_size
    given = {
        "method": method, "target": target, "batch_size": size, "precision": precision,
        "devices": device, "on_bad": on_bad, "rows": rows, "keep": keep,
        "twins": list(dict.fromkeys([*(t.name for t in plan.collect.twins), *twin])),
    }  # fmt: skip
    changes = {key: value for key, value in given.items() if value not in (None, [], "")}
    collecting = config.changed(plan.collect, "collect", changes)
    sites_of_plan = tuple(sites) or plan.sites
    plan = replace(plan, out=out or plan.out, sites=sites_of_plan, collect=collecting)
    run = _run_of(_with_noted(plan), quiet, trust_code=trust_code)
    if of is None:
        _one_link(run, "collect")
        return
    run.check_devices()
    run.folder.path.mkdir(parents=True, exist_ok=True)
    with held(run.folder.path, shared=True):
        if of.number == 1:  # one of them is enough
            config.write(run.plan)
        _print_outcome(collect_part(run, of))


@app.command("report")
def report_command(
    source: Source, again: Again = False, quiet: Quiet = False,
    out: Path | None = typer.Option(
        None, help="Folder of the pages; nothing is then written into the run folder."
    ),
) -> None:  # fmt: skip
    """The static site of a run folder."""
    plan = config.read(source)
    if out is None:
        _one_link(Run(_with_noted(plan), progress=not quiet, again=again), "report")
        return
    from condec.report import build_report

    _print(f"Report: {build_report(plan.out, out=out).resolve()}")


@app.command("explain")
def explain_command(
    source: Source,
    inputs: list[str] = typer.Option(
        [], "--input", help="Id of a collected input, or a file; may be given several times."
    ),
    site: list[str] = typer.Option([], help="Site pattern; may be given several times."),
    mode: list[int] = typer.Option([], help="Number of a mode to show, of one site."),
    name: str = typer.Option("", help="Learner of the modes, instead of the plan's."),
    label: str = typer.Option("", help="Number or name of the input's label."),
    out: Path | None = typer.Option(
        None, help="Folder of the page; nothing is then written into the run folder."
    ),
    again: Again = False, quiet: Quiet = False, trust_code: Trust = False,
) -> None:  # fmt: skip
    """Why the model gave an output: the page of an input, as a sum of modes.

    Inputs are ids of collected ones, or files that were not collected; without any, pages are made
    of those of the plan ([explain] of run.toml).
    """
    run = Run(_with_noted(config.read(source)), not quiet, again, trust_code)
    options: dict[str, Any] = {
        "sites": site,
        "show": mode,
        "name": name,
        "label": label,
        "out": out,
    }
    if not inputs:
        if any(options.values()):
            raise OptionError("--site, --mode, --name, --label and --out go with --input")
        _one_link(run, "explain")
    elif out is not None:
        with held(run.folder.path, shared=True):
            _print_outcome(explain_inputs(run, inputs, **options))
    else:
        _carry_out(run, (explain_inputs(one, inputs, **options) for one in [run]), collects=False)


def _add_command(link: str) -> None:
    """Add the command of a link that has no options of its own."""
    try:
        text = (function(link).__doc__ or "").partition("\n")[0]
    except DependencyError as error:  # One broken package does not take the other commands away.
        text = f"Cannot be used: {error}"

    @app.command(link, help=text)
    def command(
        source: Source, again: Again = False, quiet: Quiet = False, trust_code: Trust = False
    ) -> None:
        plan = _with_noted(config.read(source))
        _one_link(_run_of(plan, quiet, again, trust_code), link)


for _name in link_names():
    if _name not in ("collect", "explain", "report"):
        _add_command(_name)


@app.command("sweep")
def sweep_command(
    plan: Path = typer.Argument(metavar="PLAN", help="A sweep.toml, or a folder of results."),
    quiet: Quiet = False,
) -> None:
    """Many dictionaries of one store, over learners, widths, sparsities and seeds.

    Fits that are done are kept; the same command goes on where it was interrupted.
    """
    result = sweep.sweep(sweep.read(plan), progress=not quiet)
    _print(sweep.sweep_words(result.table))
    _print(f"{result.n_made} fits made, {result.n_kept} kept")
    for file in result.files:
        _print(file)


@app.command("compare")
def compare_command(
    first: Path = typer.Argument(help="A run folder."),
    second: Path = typer.Argument(help="Another one."),
) -> None:
    """Differences between two runs: recipe, statistics, quality, control, tables and arrays.

    The exit status is 0 where all is equal, 1 where something differs.
    """
    with held(user_path(first), shared=True), held(user_path(second), shared=True):
        found = compare_runs(first, second)
    for one in found:
        _print(f"{one.part:10} {one.name}: {one.text}")
    _print(f"{len(found)} differences" if found else "no difference")
    if found:
        raise typer.Exit(1)


@app.command("verify")
def verify_command(
    run: Path = typer.Argument(metavar="RUN", help="A run folder."),
    repair: bool = typer.Option(
        False, "--repair", help="Remove what is damaged, and compute that part again."
    ),
    quiet: Quiet = False, trust_code: Trust = False,
) -> None:  # fmt: skip
    """All that a run holds, compared with what was written: names what is damaged.

    The exit status is 0 where all is as it was written, 1 where something is damaged.
    """
    with held(user_path(run), shared=not repair):
        found = _verified(run)
        if found.damages and repair:
            plan = _with_noted(config.read(run))
            mended = Run(plan, progress=not quiet, trust_code=trust_code)
            for outcome in verify.repair_run(mended, found):
                _print_outcome(outcome)
            found = _verified(run)
    if found.damages:
        raise typer.Exit(1)


def _verified(run: Path) -> verify.Verification:
    found = verify.verify_run(run)
    for damage in found.damages:
        _print(damage)
    _print(found)
    return found


@app.command("status")
def status_command(
    run: Path = typer.Argument(metavar="RUN", help="A run folder, or a run.toml."),
) -> None:
    """What is done of a run, at which rate, and who is at work; from any machine that sees it."""
    for line in status_lines(RunFolder(config.read(run).out)):
        _print(line)


@app.command()
def schema() -> None:
    """The JSON schema of run.toml, by which editors complete and check it."""
    _print(json.dumps(config.schema(), indent=1))


@app.command()
def inspect(
    model: str = typer.Argument(help=_MODELS),
    weights: str | None = typer.Option(None, help="A .safetensors or .pt file, or 'default'."),
    input_shape: str | None = typer.Option(None, help="Shape of one input, for example 3,224,224."),
    sites: str | None = typer.Option(None, help="Only modules that match."),
    trust_code: Trust = False,
) -> None:
    """Every module: shape, parameters, and whether it is a cut; presets that fit the model.

    Through a cut passes all that flows from the input to the output: only there do the
    contributions of all units add up to the target. Then whether contributions belong to single
    samples: the proof of the model.
    """
    base, shape, trusted = Path(), _shape(input_shape), True
    if user_path(model).is_dir() or model.endswith(".toml"):
        plan = config.read(model)
        base, weights = plan.base, weights or plan.model.weights
        shape, model = shape or plan.model.input_shape, plan.model.spec
        trusted = trust_code or not plan.of_folder
    with gated(trusted=trusted):
        loaded = load_model(model, weights, folder=base)
    shape = shape or loaded.input_shape
    if shape is None:
        raise OptionError(
            f"{model} does not tell the shape of its inputs; give it, for example "
            "--input-shape 3,224,224"
        )
    # Whatever the model takes, images or numbers of tokens, these are some.
    one = torch.linspace(0, 1, math.prod(shape)).view(1, *shape)
    table = inspect_model(loaded.model, one)
    explained, proof = table.attrs["explained"], table.attrs["proof"]
    if sites is not None:
        names = {site.name for site in find_sites(loaded.model, sites)}
        table = table[table["site"].str.partition("#")[0].isin(names)]
    table = table.assign(
        shape=[_times(each) for each in table["shape"]],
        parameters=[f"{number:,}" for number in table["parameters"]],
        cut=["cut" if cut else "" for cut in table["cut"]],
    )[["site", "type", "shape", "units", "parameters", "cut", *(["proof"] if proof.places else [])]]
    _print(f"{model}, one input of shape {_times(shape)}; explained: {explained}")
    _print(table.to_string(index=False))
    _print(proof)
    if sites is None:
        fit = (f"preset:{name}" for name in presets_of(loaded.model))
        _print(f"presets: {', '.join(fit) or 'none fits'}")


def _with_noted(plan: Plan) -> Plan:
    """Return the plan with the twins its run folder notes.

    They come first, so that their order does not depend on the command.
    """
    twins = plan.collect.twins
    with suppress(CondecError):  # none yet, or a run.toml that is about to be replaced
        twins = (*config.read(plan.out).collect.twins, *twins)
    return replace(plan, collect=replace(plan.collect, twins=tuple(dict.fromkeys(twins))))


def _run_of(
    plan: Plan, quiet: bool, again: bool = False, trust_code: bool = False, address: str = ""
) -> Run:  # fmt: skip
    """Make a run with the engine of its plan, at an `address` that the user gave or trusts."""
    named = plan.engine.address or "auto"
    if plan.of_folder and not trust_code and named not in ("auto", address):
        raise OptionError(
            f"engine: the run folder names a Ray cluster, {named!r}, which could run any code: "
            "if you trust it, give --trust-code, or the plan itself, a .toml outside of run folders"
        )
    return Run(plan, not quiet, again, trust_code, engine=engine_of(plan.engine))


def _one_link(run: Run, link: str) -> None:
    _carry_out(run, map(function(link), [run]), collects=link == "collect")


def _whole_chain(run: Run, left_out: Mapping[str, str] | None = None) -> None:
    try:
        _carry_out(run, chain(run, left_out), collects="collect" in run.plan.links)
    finally:  # of a run with a link that failed, too
        if run.folder.report.exists():
            _print(f"Report: {run.folder.report.resolve()}")


def _carry_out(run: Run, outcomes: Iterable[Outcome], *, collects: bool) -> None:
    """Carry out links and print what they did; write only a plan that the run folder accepts."""
    is_new = collects and not run.folder.store.exists()
    if is_new:
        run.check_devices()
    elif not collects and not run.folder.path.exists():
        _ = run.store  # an error, before a folder is made
    with held(run.folder.path), ExitStack() as stack:
        if run.engine is not None:
            stack.callback(run.engine.close)
        if not collects:
            _ = run.store
        if is_new or not collects:
            config.write(run.plan)
        _say_outcomes(run, outcomes)


def _say_outcomes(run: Run, outcomes: Iterable[Outcome]) -> None:
    kept = False
    for outcome in outcomes:
        _print_outcome(outcome)
        kept |= outcome.state == "kept"
        if outcome.link == "collect":
            config.write(run.plan)
    if kept:
        every_byte = f"{command('verify', run.folder.path)} reads every byte"
        _print(f"kept: no input has changed, contributions by their manifest alone; {every_byte}")


def _print_outcome(outcome: Outcome) -> None:
    first = outcome.outputs[0] if outcome.outputs else None
    more = f" and {len(outcome.outputs) - 1} more" if len(outcome.outputs) > 1 else ""
    where = "" if first is None else f"  {first}{more}"
    _print(f"{outcome.link:8} {outcome.state:8} {outcome.seconds:7.1f} s{where}")
    for note in outcome.notes:
        _print(f"         note: {note}")
    sys.stdout.flush()


def _times(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))


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


if __name__ == "__main__":
    main()
