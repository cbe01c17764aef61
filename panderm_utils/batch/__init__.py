"""Plans, runs and resumes a batch, here or on a Slurm cluster; stamps the notebooks. Loads neither torch nor pandas."""

import lazy_loader

OFFERS = {
    "commands": "what_is_missing",
    "estimates": "describe_plan duration",
    "execution": "diagnose",
    "leftovers": "clear sweep",
    "lock": "FolderError owned",
    "needs": "Need",
    "parameters": "PlanError",
    "plan": "Job NOTEBOOKS PAPER Plan list_protocols make_plan select_runs",
    "running": "How _inputs_digest _stamp_file check_gpus describe_outcomes exit_status read_gpus run_batch",
    "slurm": "run_on_slurm",
    "slurm_script": "print_script",
    "stamper": "describe_drift sync",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)
