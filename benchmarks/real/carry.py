"""Fills a folder with all that a bare machine without network needs, for transfers of so many MiB each.

    python benchmarks/real/carry.py --data DATA [--model FOLDER --gguf FILE.gguf]    # writes .carry, which git ignores

    .carry/site     what pyproject.toml lists and the machine has not, for Linux, x86-64 and Python 3.12, unpacked:
                    PYTHONPATH is enough, no pip is needed there. Of bitsandbytes the library of --cuda alone
    .carry/data     MBPP, HumanEval and GSM8K, in the files' own form
    .carry/pieces   the model, packed (pack.py) into pieces that fit into a transfer each, beside the working tree

Versions are those of constraints.txt. The working tree counts too: what git tracks, and what it does not ignore. Says
what each transfer takes, and ends with status 1 where one is too large.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from pack import pack

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "annotated-types", "antlr4-python3-runtime", "bitsandbytes", "datasets", "dill", "gguf", "latex2sympy2-extended",
    "math-verify", "multiprocess", "pydantic", "pydantic-core", "rapidfuzz", "trl", "typing-extensions",
    "typing-inspection",
)  # fmt: skip
THERE = (  # of what those and pyproject.toml ask for, on the machine
    "accelerate", "filelock", "fsspec", "huggingface-hub", "jinja2", "numpy", "packaging", "pandas", "peft", "psutil",
    "pyarrow", "pyyaml", "requests", "rich", "safetensors", "sympy", "tokenizers", "torch", "tqdm", "transformers",
    "typer", "xxhash",
)  # fmt: skip
DATA = {  # where each lies, and where run.py looks for it: --data .carry/data for code, .carry/data/gsm8k for that
    "mbpp/mbpp.jsonl": "mbpp.jsonl", "humaneval/HumanEval.jsonl.gz": "HumanEval.jsonl.gz",
    "gsm8k/train.jsonl.gz": "gsm8k/train.jsonl.gz", "gsm8k/test.jsonl.gz": "gsm8k/test.jsonl.gz",
}  # fmt: skip
PLATFORMS = [f"manylinux{version}_x86_64" for version in ("_2_17", "_2_24", "_2_27", "_2_28", "2014")]
MIB = 1 << 20


def main(arguments: list[str] | None = None) -> None:
    """Fill the folder anew and tell its size. Exits with one line where something is missing or too large."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=ROOT / ".carry")
    parser.add_argument("--data", type=Path, help=f"a folder with {', '.join(DATA)}")
    parser.add_argument("--model", type=Path, help="a folder of Hugging Face layout")
    parser.add_argument("--gguf", type=Path, help="the file that its weights were widened from: it travels as small")
    parser.add_argument("--python", default="3.12", help="of the machine")
    parser.add_argument("--cuda", default="130", help="of the machine's torch (torch.version.cuda)")
    parser.add_argument("--limit", type=float, default=64.0, help="MiB of a transfer")
    parser.add_argument("--wheels", type=Path, help="a folder that holds the wheels already; by default pip loads them")
    options = parser.parse_args(arguments)
    site = options.to / "site"
    for name in ("site", "data", "pieces"):
        shutil.rmtree(options.to / name, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        unpack(sorted((options.wheels or download(Path(scratch), options.python)).glob("*.whl")), site, options.cuda)
    if options.data:
        copy(options.data, options.to / "data")
    tree = size_of(tracked())
    room = options.limit * MIB - tree
    if options.model:
        pack(options.model, options.to / "pieces", options.gguf, int(room - MIB // 4))
    told = {name: size_of((options.to / name).rglob("*")) for name in ("site", "data")}
    print(f"working tree {tree / MIB:.1f} MiB; " + ", ".join(f"{name} {size / MIB:.1f}" for name, size in told.items()))
    if sum(told.values()) > room:
        sys.exit(f"together they are more than the {options.limit:g} MiB of a transfer; take away data or packages")


def download(folder: Path, python: str) -> Path:
    """The wheels, into the folder, each alone: what else they name is on the machine."""
    platforms = [part for name in PLATFORMS for part in ("--platform", name)]
    pins = [f"{name}=={version}" for name, version in pinned().items() if name in PACKAGES]
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
        "--implementation", "cp", "--python-version", python, *platforms, "--dest", str(folder), *pins,
    ]  # fmt: skip
    if subprocess.run(command, check=False).returncode:
        sys.exit("pip could not load the wheels; its lines above say which")
    return folder


def pinned() -> dict[str, str]:
    """Each package's version, of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.partition("==") for line in lines if "==" in line]
    return {name.lower().replace("_", "-"): version for name, _, version in pairs}


def unpack(wheels: list[Path], site: Path, cuda: str) -> None:
    """Exits where a package has no wheel among these, or bitsandbytes none of its libraries for this CUDA."""
    there = {wheel.name.split("-")[0].lower().replace("_", "-") for wheel in wheels}
    if missing := sorted(set(PACKAGES) - there):
        sys.exit(f"no wheel of {', '.join(missing)}")
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if needed(name, cuda)]
            if wheel.name.startswith("bitsandbytes-") and not any(name.endswith(f"_cuda{cuda}.so") for name in names):
                sys.exit(f"{wheel.name} has no library for CUDA {cuda}; --cuda names the machine's")
            archive.extractall(site, names)


def needed(name: str, cuda: str) -> bool:
    """All but bitsandbytes' libraries of other devices: they are nine tenths of everything."""
    library = name.startswith("bitsandbytes/lib") and name.endswith(".so")
    return not library or name.endswith((f"_cuda{cuda}.so", "_cpu.so"))


def copy(data: Path, to: Path) -> None:
    """Exits where a file is not there."""
    for name, there in DATA.items():
        if not (data / name).is_file():
            sys.exit(f"{data} holds no {name}")
        (to / there).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(data / name, to / there)


def tracked() -> list[Path]:
    """What travels of the working tree."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in names.split("\0") if name]


def size_of(files: Iterable[Path]) -> int:
    return sum(file.lstat().st_size for file in files if file.is_file() or file.is_symlink())


if __name__ == "__main__":
    main()
