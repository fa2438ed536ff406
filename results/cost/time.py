"""How long the runs of the two methods took: wall-clock time of training and evaluations, of progress.csv.

    python results/cost/time.py runs/cost     # writes time.csv beside this file

The runs are those of the studies in the folders beside this file, in a folder each.
"""

import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent


def main(runs):
    rows = []
    for folder in sorted(path for path in HERE.iterdir() if path.is_dir()):
        seconds = {}
        for arm in ("ppo", "metairn"):
            paths = [*(Path(runs) / folder.name).glob(f"*__{arm}__*/finished")]
            if not paths:
                print(f"error: no run of {arm} is finished in {Path(runs) / folder.name}", file=sys.stderr)
                sys.exit(2)
            ends = [pd.read_csv(path.with_name("progress.csv"))["wall_time"].iloc[-1] for path in paths]
            seconds[arm] = pd.Series(ends)
        row = {"env": folder.name, "runs": min(map(len, seconds.values()))}
        row |= {arm: x.median() for arm, x in seconds.items()}
        rows.append(row | {"ratio": row["metairn"] / row["ppo"]})
    pd.DataFrame(rows).round(3).to_csv(HERE / "time.csv", index=False)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not any(Path(sys.argv[1]).glob("*/*__metairn__*/progress.csv")):
        print("error: time.py takes the folder that holds the runs of the studies, such as runs/cost", file=sys.stderr)
        sys.exit(2)
    main(sys.argv[1])
