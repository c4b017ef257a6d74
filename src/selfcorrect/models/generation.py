"""generation_config.json, mended where transformers would load it and then refuse to save it.

Nothing here samples by it: only its end-of-sequence ids are used, and a trained model's folder carries it on.
"""

import re
from collections.abc import Mapping
from typing import Any

_FOR_SAMPLING = {  # name -> the value that changes nothing
    "temperature": 1.0, "top_p": 1.0, "top_k": 50, "min_p": None, "top_h": None, "typical_p": 1.0,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
}  # fmt: skip
_NAMED = re.compile(r"`(\w+)`")


def mended(found: Mapping[str, Any]) -> tuple[Any, str]:
    """What the file holds -> a GenerationConfig that can be saved, and what was changed in a few words.

    Sampling parameters without do_sample are meant: it is set. With do_sample: false, or a temperature of 0, they have
    no effect, and go. So do ids that are no ids, and whatever else transformers refuses, by name. Raises what
    transformers does where it names nothing.
    """
    from transformers import GenerationConfig

    kept, told = {name: value for name, value in found.items() if value is not None}, []
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        if name in kept and not _is_id(kept[name], several=name == "eos_token_id"):
            told.append(f"without {name} = {kept.pop(name)!r}, which is no token's number")
    for_sampling = [name for name, idle in _FOR_SAMPLING.items() if kept.get(name, idle) not in (idle, None)]
    if for_sampling and kept.get("do_sample") is not True:
        shown = ", ".join(f"{name} = {kept[name]!r}" for name in for_sampling)
        if "do_sample" in kept or kept.get("temperature") == 0:
            kept = {name: value for name, value in kept.items() if name not in for_sampling}
            told.append(f"without {shown}, which greedy decoding does not use")
        else:
            kept["do_sample"] = True
            told.append(f"with do_sample: true, which {shown} needs")
    while True:  # each round takes a setting away
        try:
            config = GenerationConfig.from_dict(dict(kept))
            config.validate(strict=True)
        except Exception as error:  # values of the wrong type fail in many ways
            listed = [line[:60] for line in str(error).splitlines() if line.startswith("- ")]
            refused = [name for line in listed or [str(error)] for name in _NAMED.findall(line) if name in kept][:1]
            if not refused:
                raise
            told.append(f"without {refused[0]} = {kept.pop(refused[0])!r}, which transformers refuses")
        else:
            return config, "; ".join(told)


def _is_id(value: Any, *, several: bool) -> bool:
    if several and isinstance(value, list):
        return bool(value) and all(_is_id(item, several=False) for item in value)
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
