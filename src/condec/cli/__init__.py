"""The command line: parses, calls one function, prints.

A command is a function here; what links did is printed in outcomes.py, what ``condec inspect``
finds in inspection.py. Imports everything; nothing but ``__main__`` imports it.
"""

import io
import json
import os
import sys
import warnings
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from condec.basis import signals
from condec.basis.errors import CondecError, DependencyError, OptionError, printable
from condec.basis.files import user_path
from condec.basis.locks import held
from condec.cli.inspection import say_modules, shape_of
from condec.cli.outcomes import carry_out, one_link, say, say_outcome, whole_chain
from condec.run import Plan, Run, config, sweep, verify
from condec.run.beforehand import check_run
from condec.run.compare import compare_modes, compare_runs, modes_in_words
from condec.run.costs import Workers, costs
from condec.run.engines import engine_of
from condec.run.explain import explain_inputs
from condec.run.judging import judge_dictionaries
from condec.run.links import function
from condec.run.part import Part, collect_part
from condec.run.plugins import link_names
from condec.run.selection import control_selection, read_selection
from condec.run.status import status_lines
from condec.store import RunFolder
from condec.store.batches import is_out_of_memory


class _Commands(TyperGroup):
    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands with the whole first line of their help, which would be cut off."""
        for command in self.commands.values():
            command.short_help = (command.help or "").partition("\n")[0]
        super().format_commands(ctx, formatter)

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


def _warning(message: object, *_: object, **__: object) -> str:
    return f"condec: {printable(str(message))}\n"


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Show the version."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
) -> None:
    if version:
        say(f"condec {metadata.version('condec')}")
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
    plan = config.with_noted(replace(plan, out=out or plan.out, engine=engine_plan))
    run = _run_of(plan, quiet, again, trust_code, address or "")
    left_out = check_run(run)
    if not check:
        whole_chain(run, left_out)
        return
    say(costs(run, left_out))
    rest = " for what is not left out" if left_out else ""
    say(f"nothing ran; the plan is good{rest}")


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
    run = Run(config.with_noted(config.read(source)), progress=False, trust_code=trust_code)
    engine = run.plan.engine
    known = engine.workers if engine.kind != "here" and engine.workers else 1
    number = known if workers is None else workers
    on = Workers(number=number, price=price, images_per_second=images_per_second)
    say(costs(run, check_run(run), on))


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
    whole_chain(Run(config.with_noted(plan), progress=not quiet))


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
    run = _run_of(config.with_noted(plan), quiet, trust_code=trust_code)
    if of is None:
        one_link(run, "collect")
        return
    run.check_devices()
    run.folder.path.mkdir(parents=True, exist_ok=True)
    with held(run.folder.path, shared=True):
        if of.number == 1:  # one of them is enough
            config.write(run.plan)
        say_outcome(collect_part(run, of))


@app.command("report")
def report_command(
    source: Source, again: Again = False, quiet: Quiet = False,
    out: Path | None = typer.Option(
        None, help="Folder of the pages; nothing is then written into the run folder."
    ),
) -> None:  # fmt: skip
    """The static site of a run folder."""
    plan = config.read(source)
    from condec.report import build_report, size_in_words

    if out is None:
        run = Run(config.with_noted(plan), progress=not quiet, again=again)
        one_link(run, "report")
        page = run.folder.report
    else:
        page = build_report(plan.out, out=out)
        say(f"Report: {page.resolve()}")
    say(f"Size: {size_in_words(page.parent)}")


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
    plan = config.with_noted(config.read(source))
    options: dict[str, Any] = {"sites": site, "show": mode, "name": name}
    options |= {"label": label, "out": out}
    if not inputs:
        if any(options.values()):
            raise OptionError("--site, --mode, --name, --label and --out go with --input")
        one_link(_run_of(plan, quiet, again, trust_code), "explain")
        return
    run = Run(plan, not quiet, again, trust_code)  # workers know inputs of the plan only
    if out is not None:
        with held(run.folder.path, shared=True):
            say_outcome(explain_inputs(run, inputs, **options))
    else:
        carry_out(run, (explain_inputs(one, inputs, **options) for one in [run]), collects=False)


@app.command("control")
def control_command(
    source: Source,
    selection: Path | None = typer.Option(
        None, help="A toml of chosen modes: only a curve of each, beside baselines."
    ),
    again: Again = False, quiet: Quiet = False, trust_code: Trust = False,
) -> None:  # fmt: skip
    """Control curves: what ablating modes does to accuracy."""
    plan = config.with_noted(config.read(source))
    if selection is None:
        one_link(_run_of(plan, quiet, again, trust_code), "control")
        return
    chosen = read_selection(selection)
    run = Run(plan, not quiet, again, trust_code)  # workers know tasks of the plan only
    carry_out(run, (control_selection(one, chosen) for one in [run]), collects=False)


@app.command("judge")
def judge_command(
    source: Source,
    site: list[str] = typer.Option([], help="Site pattern; may be given several times."),
    of_activations: list[str] = typer.Option(
        [], help="Another dictionary, of activations: a file or folder; {site} is the site's key."
    ),
    again: Again = False, quiet: Quiet = False, trust_code: Trust = False,
) -> None:  # fmt: skip
    """All dictionaries of a site side by side, with its single units, for the report."""
    run = Run(config.with_noted(config.read(source)), not quiet, again, trust_code)
    made = (judge_dictionaries(one, site, of_activations) for one in [run])
    carry_out(run, made, collects=False)


@app.command("explore")
def explore_command(
    source: Source,
    host: str = typer.Option("127.0.0.1", help="Another address is guarded by a token."),
    port: int | None = typer.Option(None, help="By default the first that is free from 8765."),
    trust_code: Trust = False,
) -> None:
    """Serve the report, and answer questions live: other inputs, modes turned up and down."""
    from condec.explorer.server import serve
    from condec.explorer.session import Session

    plan = config.with_noted(config.read(source))
    serve(Session(_run_of(plan, quiet=True, trust_code=trust_code)), host, port, say)


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
        plan = config.with_noted(config.read(source))
        one_link(_run_of(plan, quiet, again, trust_code), link)


for _name in link_names():
    if _name not in ("collect", "control", "explain", "report"):
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
    say(sweep.sweep_words(result.table))
    say(f"{result.n_made} fits made, {result.n_kept} kept")
    for file in result.files:
        say(file)


@app.command("compare")
def compare_command(
    first: Path = typer.Argument(help="A run folder."),
    second: Path | None = typer.Argument(
        None, help="Another one. With --modes alone: the run's own twin with random weights."
    ),
    modes: bool = typer.Option(
        False, "--modes", help="Match their modes by loadings on the same inputs."
    ),
    out: Path | None = typer.Option(None, help="Folder for a page of the matched modes."),
) -> None:
    """Differences between two runs: recipe, statistics, quality, control, tables and arrays.

    The exit status is 0 where all is equal, 1 where something differs; with --modes it is 0.
    """
    if second is None:
        if out is not None or not modes:
            raise OptionError("compare: give two run folders; one alone goes with --modes, no page")
        for line in modes_in_words(compare_modes(first)):
            say(line)
        return
    if modes or out is not None:
        matched = compare_modes(first, second)
        lines = list(modes_in_words(matched))
        for line in lines:
            say(line)
        if out is not None:
            from condec.report import build_comparison

            say(f"Page: {build_comparison(first, second, matched, lines, out)}")
        return
    with held(user_path(first), shared=True), held(user_path(second), shared=True):
        found = compare_runs(first, second)
    for one in found:
        say(f"{one.part:10} {one.name}: {one.text}")
    say(f"{len(found)} differences" if found else "no difference")
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
            plan = config.with_noted(config.read(run))
            mended = Run(plan, progress=not quiet, trust_code=trust_code)
            for outcome in verify.repair_run(mended, found):
                say_outcome(outcome)
            found = _verified(run)
    if found.damages:
        raise typer.Exit(1)


def _verified(run: Path) -> verify.Verification:
    found = verify.verify_run(run)
    for damage in found.damages:
        say(damage)
    say(found)
    return found


@app.command("status")
def status_command(
    run: Path = typer.Argument(metavar="RUN", help="A run folder, or a run.toml."),
) -> None:
    """What is done of a run, at which rate, and who is at work; from any machine that sees it."""
    for line in status_lines(RunFolder(config.read(run).out)):
        say(line)


@app.command()
def schema() -> None:
    """The JSON schema of run.toml, by which editors complete and check it."""
    say(json.dumps(config.schema(), indent=1))


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
    say_modules(model, weights, shape_of(input_shape), sites, trust_code=trust_code)


def _run_of(
    plan: Plan, quiet: bool, again: bool = False, trust_code: bool = False, address: str = ""
) -> Run:  # fmt: skip
    """Make a run with the engine of its plan, at an `address` that the user gave or trusts."""
    engine = engine_of(plan, trust_code=trust_code, address=address)
    return Run(plan, not quiet, again, trust_code, engine=engine)
