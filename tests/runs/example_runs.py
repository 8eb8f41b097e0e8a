"""Runs of the examples on a few of their inputs, at one site, for a browser to look at."""

from dataclasses import replace
from pathlib import Path

from condec.dictionary import KMeans
from condec.run import Plan, Run, chain, config

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SITES = {
    "photos_mobilenet": "blocks.12", "cifar10_resnet20": "layer3.1",
    "stories": "lm.model.layers.4.mlp.down_proj:input",
}  # fmt: skip


def example_run(name: str, folder: Path, limit: int, *more: str) -> Plan:
    """Collect and fit a few inputs of an example, and carry out more links; its plan."""
    plan = config.read(EXAMPLES / name / "run.toml")
    links = ("collect", "fit", *more)
    few = replace(
        plan, out=folder / "run", sites=(SITES[name],), data=replace(plan.data, limit=limit),
        collect=replace(plan.collect, twins=()),
        fit=replace(
            plan.fit, learner=KMeans(n_modes=3), stability_seeds=0, check_sites=(),
            modes_per_unit=None, rows_per_mode=None, rivals=False,
        ),
        maps=replace(plan.maps, sites=(), n_modes=2, n_inputs=3), links=links,
    )  # fmt: skip
    config.write(few)
    assert [outcome.state for outcome in chain(Run(few, progress=False))] == ["made"] * len(links)
    return few
