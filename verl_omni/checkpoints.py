"""Where a training run left its model."""

import warnings
from pathlib import Path
from types import ModuleType

TRACKER = "latest_checkpointed_iteration.txt"


def latest(run: str | Path) -> Path:
    """Return the last model of ``run``, a recipe's ``trainer.default_local_dir``.

    It is ``global_step_N/huggingface``, of GRPO ``global_step_N/actor/huggingface``; without a checkpoint the file that
    verl notes N in, so that whoever looks for the model names it.
    """
    tracker = Path(run).expanduser() / TRACKER
    if not tracker.is_file():
        return tracker
    step = tracker.parent / f"global_step_{tracker.read_text().strip()}"
    of_grpo = step / "actor" / "huggingface"
    return of_grpo if of_grpo.is_dir() else step / "huggingface"


def restore_tracker(run: str | Path) -> None:
    """Note the newest checkpoint of a verl run again where a kill has left the file for it empty, or end the process.

    verl's GRPO trainer empties the file before it writes to it, last of all: a checkpoint with the data loader's state
    is whole.
    """
    tracker = Path(run).expanduser() / TRACKER
    if not tracker.is_file() or tracker.read_text().strip():
        return
    folders = (state.parent.name for state in tracker.parent.glob("global_step_*/data*.pt"))
    whole = [int(name.removeprefix("global_step_")) for name in folders]
    if not whole:
        raise SystemExit(f"{tracker} is empty, and no checkpoint lies beside it; remove it to train from the start")
    warnings.warn(f"{tracker} is empty, as a kill leaves it; going on from global_step_{max(whole)}", stacklevel=2)
    written = tracker.with_suffix(".restored")
    written.write_text(str(max(whole)))
    written.replace(tracker)


def model_directory(path: Path) -> Path:
    """Return ``path``, or the last model of the training run that it is; ``FileNotFoundError`` if there is none."""
    model = latest(path) if (path / TRACKER).is_file() else path
    if not (model / "config.json").is_file():
        remedy = "give a model directory (`python -m verl_omni convert` makes one from an original checkpoint)"
        raise FileNotFoundError(f"{path}: no config.json in it; {remedy}")
    return model


def register_resolver(omegaconf: ModuleType) -> None:
    """Make ``${latest:RUN}`` known to OmegaConf, in each process of verl: some of them resolve a recipe anew."""
    omegaconf.OmegaConf.register_new_resolver("latest", lambda run: str(latest(run)), replace=True)
