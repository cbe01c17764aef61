"""The smallest complete record, for tests that look at no number of it; the notebooks of such tests import it too."""

import hashlib
import json

from panderm_utils.results import SCHEMA

PREDICTIONS = b"filename\n"


def write_small_record(folder, **more):
    """Writes it into a folder named after its run; `more` adds keys or replaces them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "predictions.csv").write_bytes(PREDICTIONS)
    record = {"schema": SCHEMA, "run_id": folder.name, "status": "done", "dataset": "demo", "protocol": "linear_probe"}
    record |= {"encoder": "random_tiny", "seed": 0, "profile": "demo", "settings": {}, "metrics": {}, "scored": {}}
    record["files"] = {"predictions.csv": hashlib.sha256(PREDICTIONS).hexdigest()}
    (folder / "record.json").write_text(json.dumps({**record, **more}))


def rewrite_predictions(folder, change):
    """Replaces the predictions of a record by what `change` makes of them, as if so written."""
    import pandas as pd  # here, as notebooks that import this module need not wait for it

    from panderm_utils.results import describe_scored

    path = folder / "predictions.csv"
    table = change(pd.read_csv(path))
    table.to_csv(path, index=False)
    record = json.loads((folder / "record.json").read_text())
    record["files"]["predictions.csv"] = hashlib.sha256(path.read_bytes()).hexdigest()
    record["scored"] = describe_scored(table)
    (folder / "record.json").write_text(json.dumps(record))
