"""Models, data sets and metrics that are given by name: nothing is fetched that has not been named first."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

from capreward.errors import InputError

logger = logging.getLogger("capreward.hub")
"""Its warnings reach stderr even where nobody has set up logging."""


class Model(NamedTuple):
    """A model, to be loaded from `source`."""

    source: str
    """A folder, or the name of what has to be fetched."""
    local: bool
    """Whether all of it lies on this machine, so that the hub need not be asked."""
    commit: str | None = None
    """Of a copy in the hub's cache."""


def find_model(who: str, name: str | Path, *, revision: str | None = None) -> Model:
    """A model with its tokenizer or processor: where it lies on this machine, or, after that has been logged, its name.

    Args:
        who: is looking, for the messages; such as ``LocalJudge``.
        name: folder, or name on the Hugging Face hub. A folder with adapters alone needs their base model too.
        revision: branch, tag or commit on the hub.

    Raises:
        InputError: neither a folder nor a possible name; not in the cache while the hub is offline.
    """
    if Path(name).exists():
        base = _base_model(Path(name))
        return Model(str(name), base is None or find_model(who, base).local)
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    _require_name(who, "model", name, "a folder that exists")
    try:
        folder = Path(snapshot_download(str(name), revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        folder = None
    if folder is not None and (_is_complete(folder) or constants.is_offline_mode()):
        return Model(str(folder), True, folder.name)  # offline, whoever loads it says what it lacks
    page = f"{constants.ENDPOINT}/{name}" + (f" at {revision}" if revision else "")
    _fetch(who, f"model {name}", page, constants.HF_HUB_CACHE, "the folder of a copy")
    return Model(str(name), False)


def find_dataset(who: str, name: str) -> Path | None:
    """Where a data set lies on this machine; None if it has to be fetched, which is then logged.

    Data that are in the cache are still compared with the hub's by `datasets`, which fetches newer ones: that is logged too.

    Raises:
        InputError: as of `find_model`.
    """
    if Path(name).exists():
        return Path(name)
    import datasets

    _require_name(who, "data set", name, "a folder that exists")
    *owner, short = name.split("/")
    folder = Path(
        datasets.config.HF_DATASETS_CACHE, "___".join([*owner, datasets.naming.camelcase_to_snakecase(short)])
    )
    page = f"{datasets.config.HF_ENDPOINT}/datasets/{name}"
    if not any(folder.glob("*/*/*")):
        instead = "a .jsonl or .parquet file, or a folder of them"
        _fetch(who, f"data set {name}", page, datasets.config.HF_DATASETS_CACHE, instead)
        return None
    if not datasets.config.HF_HUB_OFFLINE and _speaks():
        logger.warning("%s: data set %s lies in %s; fetching what is newer on %s", who, name, folder, page)
    return folder


def find_metric(who: str, name: str) -> Path | None:
    """The script of a metric of `evaluate` on this machine; None if it has to be fetched, which is then logged.

    Raises:
        InputError: as of `find_model`.
    """
    if Path(name).exists():
        return Path(name)
    from evaluate import config

    _require_name(who, "metric", name, "a script that exists")
    cache = Path(config.HF_MODULES_CACHE, "evaluate_modules", "metrics")
    short = name.rpartition("/")[2]
    kinds = (
        [name.replace("/", "--")]
        if "/" in name
        else [f"evaluate-{k}--{name}" for k in ("metric", "comparison", "measurement")]
    )
    scripts = [script for kind in kinds for script in cache.glob(f"{kind}/*/{short}.py")]
    if scripts:
        return max(scripts, key=lambda script: script.stat().st_mtime)
    page = f"{config.HF_ENDPOINT}/spaces/{name if '/' in name else f'evaluate-metric/{name}'}"
    _fetch(who, f"metric {name}", page, str(cache), "the path of its script")
    return None


def _require_name(who: str, what: str, name: str | Path, path: str) -> None:
    """
    Raises:
        InputError: nothing on the hub can be called so.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(str(name))
    except HFValidationError:
        raise InputError(
            f"{who}: got {what} {str(name)!r}, expected {path}, or a name on the Hugging Face hub"
        ) from None


def _fetch(who: str, what: str, page: str, into: str | Path, instead: str) -> None:
    """Logs what is about to be fetched.

    Raises:
        InputError: the hub is offline.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode():
        raise InputError(
            f"{who}: {what} is neither a path nor in {into}, and HF_HUB_OFFLINE is set; "
            f"give {instead}, or unset HF_HUB_OFFLINE to fetch it from {page}"
        )
    if _speaks():
        logger.warning("%s: fetching %s from %s into %s; to fetch nothing, give %s", who, what, page, into, instead)


def _speaks() -> bool:
    """Of several processes that train together on a machine, the first one speaks."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _base_model(folder: Path) -> str | None:
    """What the adapters in a folder were trained on, unless that lies beside them."""
    base = _read(folder / "adapter_config.json").get("base_model_name_or_path")
    alone = not (folder / "config.json").exists()
    return base if alone and isinstance(base, str) and base else None


def _is_complete(folder: Path) -> bool:
    """Whether a snapshot holds weights, every shard of them that an index names, and what reads a prompt."""
    indices = [_read(index).get("weight_map", {}) for index in folder.glob("*.index.json")]
    shards = {shard for index in indices for shard in index.values()}
    weights = all((folder / shard).is_file() for shard in shards) if shards else _has(folder, "*.safetensors", "*.bin")
    sees = "vision_config" in _read(folder / "config.json")
    return (
        weights
        and _has(folder, "tokenizer*", "vocab*", "*.model")
        and (not sees or _has(folder, "preprocessor_config.json", "processor_config.json"))
    )


def _has(folder: Path, *patterns: str) -> bool:
    return any(path.is_file() for pattern in patterns for path in folder.glob(pattern))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
