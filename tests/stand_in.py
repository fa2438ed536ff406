"""Stands in for plot_results.py and for training scripts, which execute AT_CHECKPOINT after each checkpoint."""

import json
import os
import sys
from pathlib import Path

words = iter(sys.argv[1:])
options = {word[2:]: next(words) for word in words}
if Path(__file__).stem == "plot_results":
    assert list(options) == ["runs", "out"]
    rows = [path.parent / "progress.csv" for path in Path(options["runs"]).glob("*/finished")]
    if not rows:
        sys.exit(print("error: there is no finished run in", options["runs"], file=sys.stderr) or 2)
    Path(options["out"]).mkdir(exist_ok=True)
    text = "".join(f"{path.parent.name}\n{path.read_text()}" for path in sorted(rows))
    sys.exit(Path(options["out"], "evaluations.csv").write_text(text) and 0)

if "resume" in options:
    folder = Path(options["resume"])
    options = json.loads((folder / "args.json").read_text())
else:
    env_id = options.get("env-id", "umbrella_env:UmbrellaLength-v0").split(":")[-1]
    if "Nothing" in env_id or (options["chain-length"] == "0" and "Umbrella" in env_id):
        sys.exit(print(f"error: no {env_id} of length {options['chain-length']}", file=sys.stderr) or 2)
    name = [env_id, options["exp-name"], options["chain-length"], options["seed"]]
    folder = Path(options["runs-dir"], "__".join(name))
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "checkpoint.pt").exists():
        sys.exit(print(f"error: {folder} holds a run already", file=sys.stderr) or 2)
    (folder / "args.json").write_text(json.dumps(options | {"script": __file__}))
checkpoint = folder / "checkpoint.pt"
rows = json.loads(checkpoint.read_text()) if checkpoint.exists() else [[0, int(options["seed"])]]
print("begins at step", rows[-1][0], flush=True)
while rows[-1][0] < int(options["total-timesteps"]):
    step = rows[-1][0] + int(options["eval-every"])
    rows.append([step, 31 * rows[-1][1] % 1009])
    (folder / "temporary").write_text(json.dumps(rows))
    (folder / "temporary").replace(checkpoint)
    exec(os.environ.get("AT_CHECKPOINT", ""))
(folder / "progress.csv").write_text("".join(f"{step},{value}\n" for step, value in rows))
