"""Plans, runs and resumes a batch, here or on a Slurm cluster; stamps the notebooks. Loads neither torch nor pandas."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "commands": ["what_is_missing"],
        "devices": ["check_gpus", "read_gpus"],
        "estimates": ["describe_plan", "duration"],
        "execution": ["diagnose"],
        "leftovers": ["clear", "sweep"],
        "lock": ["FolderError", "owned"],
        "needs": ["Need"],
        "parameters": ["PlanError"],
        "plan": ["Job", "NOTEBOOKS", "PAPER", "Plan", "list_protocols", "make_plan", "select_runs"],
        "running": ["How", "_inputs_digest", "_stamp_file", "describe_outcomes", "exit_status", "run_batch"],
        "slurm": ["run_on_slurm"],
        "slurm_script": ["print_script"],
        "stamper": ["describe_drift", "sync"],
    },
)
