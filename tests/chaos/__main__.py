"""The long form of the chaos tests: `python tests/chaos [KILLS [SEED]]`, or `make chaos`. Ends with a table.

Exit status: 0 if nothing was lost, left over, different or done twice.
"""

import sys
import tempfile
from pathlib import Path

from accidents import Chaos
from house import House

if __name__ == "__main__":
    kills, seed = (int(text) for text in (*sys.argv[1:], *("100", "0")[len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory() as folder:
        chaos = Chaos(House(Path(folder)), seed)
        print(f"a batch that nothing happens to takes {chaos.seconds:.0f} s", flush=True)
        chaos.all_rounds(kills)
        print("\n".join(["", *chaos.tally.told, "", chaos.tally.table()]))
    sys.exit(bool(chaos.tally.told))
