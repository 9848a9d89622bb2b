"""Calibrate the embedded base for the planner; the result is shipped with it.

    python pocket/calibrate.py                # measure, and print how well the forecast fits
    python pocket/calibrate.py --keep         # and write lorewright/models/pocket/calibration.json

Run it again whenever the base, the default recipe or the sweep changes: until then `lore write`
uses its fixed rank and `lore plan` calibrates for itself. An interrupted run resumes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch

from lorewright.files import save_json
from lorewright.law.calibration import PACKAGED, calibrate, identity, place
from lorewright.law.forecast import PRIOR
from lorewright.models.model import Model
from lorewright.training.config import WriteConfig
from lorewright.training.rates import suggested_lr


def main() -> None:
    """Calibrate, print every trial beside its forecast; with --keep store the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", action="store_true", help="ship the result with the base")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--cache", type=Path, help="folder of the trials, where an interrupted run resumes"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.cache is None:
        args.cache = Path(tempfile.gettempdir()) / "lorewright-calibrate"
    os.environ["LOREWRIGHT_CACHE"] = str(args.cache)
    model = Model.load()
    config = WriteConfig(lr=suggested_lr(model))
    started = (time.monotonic(), time.process_time())
    made = calibrate(model, config, progress=print)
    wall, cpu = time.monotonic() - started[0], time.process_time() - started[1]
    print(f"{args.threads} threads: {wall:.0f} s by the clock, {cpu:.0f} s of CPU in this run")
    print(f"folder {place(identity(model, config))}; training of all trials {made.seconds:.0f} s")
    inside = 0
    for trial in made.trials:
        interval = made.forecast.predict(trial.load, trial.rank, trial.epochs)
        covered = interval.low <= trial.share <= interval.high
        inside += covered
        print(
            f"{trial.group:24} rank {trial.rank:2} epochs {trial.used:3}/{trial.epochs:<3} recall "
            f"{trial.share:.2f}  forecast {interval.value:.2f} [{interval.low:.2f}, "
            f"{interval.high:.2f}]{'' if covered else '  outside'}"
        )
    constants = zip(PRIOR, made.forecast.constants, strict=True)
    print(", ".join(f"{k} {v:.3g}" for k, v in constants), f"spread {made.forecast.spread:.3f}")
    print(f"calibrate trials={len(made.trials)} inside={inside} seconds={wall:.0f} cpu={cpu:.0f}")
    if args.keep:
        save_json(made.to_json(), PACKAGED)


if __name__ == "__main__":
    main()
