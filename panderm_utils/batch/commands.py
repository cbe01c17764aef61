"""The command for a published run that has no record yet."""

from panderm_utils import protocols, results
from panderm_utils.batch.plan import make_plan
from panderm_utils.manifests import PublishedResult, load_profile
from panderm_utils.workspace import Workspace


def what_is_missing(result: PublishedResult, space: Workspace) -> str:
    """Returns the data and weights that a published run lacks, and the command that runs it.

    In the demo profile only the command: its data are synthetic, so it cannot reproduce a published run.
    """
    protocol = protocols.load_protocol(result.protocol)
    differing = results.differing_settings({"seed": load_profile("paper").seeds[0]}, protocol, result)
    seeds = [differing.pop("seed")[1]] if "seed" in differing else []
    overrides = [f"{name}={published}" for name, (_, published) in differing.items()]
    command = f"python run_all.py --profile paper --protocols {result.protocol} --datasets {result.dataset}"
    command += f" --encoders {result.encoder}" + "".join(f" --seeds {seed}" for seed in seeds)
    command += "".join(f" -p {text}" for text in overrides)
    if space.synthetic:
        return f"synthetic images reproduce no published number; the paper's run: {command}"
    planned = make_plan(space, [result.dataset], [result.encoder], [result.protocol], seeds, overrides)
    needs = dict.fromkeys(f"the {need.kind}" for run in planned.runs for need in run.missing)
    return f"{' and '.join(needs)}; then: {command}" if needs else f"nothing but the run: {command}"
