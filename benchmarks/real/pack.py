"""Carries a model over a narrow channel: a folder of Hugging Face layout as small pieces, and back, to the bit.

    python benchmarks/real/pack.py pack MODEL_FOLDER PIECES --gguf FILE.gguf [--megabytes 56]
    python benchmarks/real/pack.py receive PIECE... --to PIECES
    python benchmarks/real/pack.py unpack PIECES MODEL_FOLDER

For folders whose weights were widened from a GGUF file: a tensor that equals the file's, rounded to its own type,
travels as the file's 4 to 8 bits a value; every other one as it is. So nothing is lost, and `unpack` proves it: each
tensor and each file is compared with the checksum of the original. `receive` copies pieces to a folder that outlasts
the transfer, and says when they were there. Needs numpy, safetensors, torch and gguf (pure Python).
"""

import argparse
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch is imported where it is used: `receive` needs none, and is called once for every piece
    from torch import Tensor

SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt")  # what a model folder holds beside its weights
PACKED = "model.pack"


def main(arguments: list[str] | None = None) -> None:
    """Pack, receive or unpack; exit status 1 and one line where something does not fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="a model folder -> pieces")
    packing.add_argument("model", type=Path)
    packing.add_argument("pieces", type=Path)
    packing.add_argument("--gguf", type=Path, help="the file that the weights were widened from")
    packing.add_argument("--megabytes", type=float, default=56, help="size of a piece, in MiB")
    receiving = commands.add_parser("receive", help="copy pieces that have arrived")
    receiving.add_argument("arrived", type=Path, nargs="+")
    receiving.add_argument("--to", type=Path, required=True)
    unpacking = commands.add_parser("unpack", help="pieces -> the model folder")
    unpacking.add_argument("pieces", type=Path)
    unpacking.add_argument("model", type=Path)
    options = parser.parse_args(arguments)
    began = time.monotonic()
    if options.command == "pack":
        pack(options.model, options.pieces, options.gguf, int(options.megabytes * 2**20))
    elif options.command == "receive":
        receive(options.arrived, options.to)
    else:
        unpack(options.pieces, options.model)
    print(f"{options.command}: {time.monotonic() - began:.1f} s", flush=True)


def pack(model: Path, pieces: Path, gguf: Path | None, size: int) -> None:
    """Write pieces of at most `size` bytes to a new folder, each with its checksum in its name."""
    if pieces.exists() and any(pieces.iterdir()):
        sys.exit(f"{pieces} is not empty; name a new folder")
    pieces.mkdir(parents=True, exist_ok=True)
    whole = pieces / PACKED
    with whole.open("wb") as out:
        entries = [*_pack_tensors(model, gguf, out), *_pack_files(model, out)]
    header = json.dumps(entries).encode()
    with whole.open("ab") as out:  # the table of contents stands last: it is known last
        out.write(header + len(header).to_bytes(8, "little"))
    count = -(-whole.stat().st_size // size)
    with whole.open("rb") as source:
        for number in range(1, count + 1):
            part = source.read(size)
            (pieces / f"piece-{number:02d}-of-{count:02d}-{hashlib.sha256(part).hexdigest()[:16]}").write_bytes(part)
    packed = sum(entry["bytes"] for entry in entries if entry.get("gguf"))
    print(
        f"{whole.stat().st_size / 2**20:.1f} MiB in {count} pieces, {packed / 2**20:.1f} MiB of it as in the GGUF file"
    )
    whole.unlink()


def receive(arrived: list[Path], to: Path) -> None:
    """Copy whole pieces to `to`. Exits where one is damaged."""
    to.mkdir(parents=True, exist_ok=True)
    for path in arrived:
        _check(path)
        shutil.copyfile(path, to / f".{path.name}")
        (to / f".{path.name}").replace(to / path.name)
    there = sorted(to.glob("piece-*"))
    print(f"{len(there)} of {_count(there[0])} pieces are there at {time.strftime('%H:%M:%S')}", flush=True)


def unpack(pieces: Path, model: Path) -> None:
    """Join the pieces and write the folder; exits where a piece, a tensor or a file is not the original's."""
    paths = sorted(pieces.glob("piece-*"))
    numbers = [int(path.name.split("-")[1]) for path in paths]
    if not paths or numbers != list(range(1, _count(paths[0]) + 1)):
        sys.exit(f"{pieces}: pieces are missing, or of two packs; found {', '.join(p.name for p in paths) or 'none'}")
    data = b"".join(_check(path) for path in paths)
    length = int.from_bytes(data[-8:], "little")
    model.mkdir(parents=True, exist_ok=True)
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for entry in json.loads(data[-8 - length : -8]):
        raw = data[entry["start"] : entry["start"] + entry["bytes"]]
        if "file" in entry:
            name = Path(entry["file"]).name  # a name alone, whatever the pack says
            if hashlib.sha256(raw).hexdigest() != entry["sha256"]:
                sys.exit(f"{name}: not the original file")
            (model / name).write_bytes(raw)
        else:
            tensors[entry["tensor"]] = tensor = _tensor(entry, raw)
            if _digest(tensor) != entry["sha256"]:
                sys.exit(f"{entry['tensor']}: not the original's values; is another version of gguf installed?")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    print(f"{len(tensors)} tensors, each equal to the original's to the bit")


def _pack_tensors(model: Path, gguf: Path | None, out: Any) -> Iterator[dict[str, Any]]:
    """Write every tensor of the folder, in 4 to 8 bits a value where that loses nothing; entries of the table."""
    import torch
    from safetensors import safe_open

    blocks = _gguf_tensors(model, gguf) if gguf else {}
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - it is no dict
                tensor = weights.get_tensor(name)
                entry = {"tensor": name, "dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
                found = next((b for b in blocks.get(name, ()) if torch.equal(_widened(b, entry), tensor)), None)
                raw = found.data.tobytes() if found is not None else _raw(tensor)
                kind = {"gguf": found.tensor_type.name} if found is not None else {}
                yield {**entry, **kind, "start": out.tell(), "bytes": len(raw), "sha256": _digest(tensor)}
                out.write(raw)


def _pack_files(model: Path, out: Any) -> Iterator[dict[str, Any]]:
    for file in sorted({path for pattern in SMALL_FILES for path in model.glob(pattern)}):
        if file.name == "model.safetensors.index.json":
            continue  # all weights arrive in one file
        raw = file.read_bytes()
        start, digest = out.tell(), hashlib.sha256(raw).hexdigest()
        yield {"file": file.name, "start": start, "bytes": len(raw), "sha256": digest}
        out.write(raw)


def _gguf_tensors(model: Path, file: Path) -> dict[str, list[Any]]:
    """Hugging Face name -> the tensors of the GGUF file that may be it: with tied weights, embedding and head."""
    from gguf import MODEL_ARCH_NAMES, GGUFReader, get_tensor_name_map
    from safetensors import safe_open

    reader = GGUFReader(file)
    arch = reader.fields["general.architecture"].contents()
    kind = next(key for key, value in MODEL_ARCH_NAMES.items() if value == arch)
    layers = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    names, there = get_tensor_name_map(kind, layers), {tensor.name: tensor for tensor in reader.tensors}
    found: dict[str, list[Any]] = {}
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(path, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118
                stem, _, suffix = name.rpartition(".")
                own = f"{names.get_name(stem)}.{suffix}"
                candidates = [own, "output.weight"] if own == "token_embd.weight" else [own]
                found[name] = [there[candidate] for candidate in candidates if candidate in there]
    return found


def _widened(block: Any, entry: dict[str, Any]) -> "Tensor":
    import torch
    from gguf import dequantize

    values = torch.from_numpy(dequantize(block.data, block.tensor_type).copy())
    return values.reshape(entry["shape"]).to(getattr(torch, entry["dtype"]))


def _tensor(entry: dict[str, Any], raw: bytes) -> "Tensor":
    import torch

    if "gguf" not in entry:
        return torch.frombuffer(bytearray(raw), dtype=getattr(torch, entry["dtype"])).reshape(entry["shape"])
    import numpy as np
    from gguf import GGMLQuantizationType, dequantize
    from gguf.quants import quant_shape_to_byte_shape

    kind = GGMLQuantizationType[entry["gguf"]]
    if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        plain = np.frombuffer(raw, np.float32 if kind is GGMLQuantizationType.F32 else np.float16)
        values = torch.from_numpy(plain.copy())
    else:
        shape = quant_shape_to_byte_shape(entry["shape"], kind)
        values = torch.from_numpy(dequantize(np.frombuffer(raw, np.uint8).reshape(shape), kind))
    return values.reshape(entry["shape"]).to(getattr(torch, entry["dtype"]))


def _raw(tensor: "Tensor") -> bytes:
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _digest(tensor: "Tensor") -> str:
    return hashlib.sha256(_raw(tensor)).hexdigest()


def _check(path: Path) -> bytes:
    """The piece's bytes. Exits where they are not those that its name promises."""
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest()[:16] != path.name.rpartition("-")[2]:
        sys.exit(f"{path}: damaged on the way; send it again")
    return data


def _count(piece: Path) -> int:
    return int(piece.name.split("-")[3])


if __name__ == "__main__":
    main()
