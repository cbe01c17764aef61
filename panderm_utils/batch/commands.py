"""What to type for a run that is not there."""

from panderm_utils import protocols, results
from panderm_utils.batch.plan import make_plan
from panderm_utils.manifests import PublishedResult, load_profile
from panderm_utils.workspace import Workspace


def what_is_missing(result: PublishedResult, space: Workspace) -> str:
    """Returns what has to be had for a published run, if anything, and what to type then.

    A demo looks for nothing: what lies in its data root is drawn.
    """
    protocol = protocols.load_protocol(result.protocol)
    differs = results.differing_settings({"seed": load_profile("paper").seeds[0]}, protocol, result)
    seeds = [differs.pop("seed")[1]] if "seed" in differs else []
    given = [f"{name}={published}" for name, (_, published) in differs.items()]
    command = f"python run_all.py --profile paper --protocols {result.protocol} --datasets {result.dataset}"
    command += f" --encoders {result.encoder}" + "".join(f" --seeds {seed}" for seed in seeds)
    command += "".join(f" -p {text}" for text in given)
    if space.synthetic:
        return f"drawn images are compared with nothing; the paper's run: {command}"
    planned = make_plan(space, [result.dataset], [result.encoder], [result.protocol], seeds, given)
    needs = dict.fromkeys(f"the {need.kind}" for run in planned.runs for need in run.missing)
    return f"{' and '.join(needs)}; then: {command}" if needs else f"only the run: {command}"
