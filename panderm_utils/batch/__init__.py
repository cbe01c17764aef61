"""Plans, runs and resumes batches, here or on a Slurm cluster; stamps notebooks. Imports neither torch nor pandas."""

import lazy_loader

OFFERS = {
    "calibrating": "calibrate",
    "commands": "what_is_missing",
    "costs": "format_duration",
    "data_check": "check_data",
    "estimates": "describe_plan toy_note",
    "execution": "diagnose",
    "jobs": "Job PAPER Plan",
    "leftovers": "clear_leftovers remove_partial_files",
    "lock": "FolderError lock_folder",
    "needs": "Need",
    "parameters": "PlanError",
    "plan": "NOTEBOOKS list_protocols make_plan select_runs",
    "running": "BatchOptions _inputs_digest _stamp_file check_gpus describe_outcomes exit_status read_gpus run_batch",
    "slurm": "run_on_slurm",
    "slurm_script": "print_script",
    "stamper": "describe_drift sync",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)
