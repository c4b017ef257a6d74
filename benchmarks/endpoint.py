"""Does an endpoint answer like the same model loaded here? benchmarks/results/endpoint.json.

    python benchmarks/endpoint.py URL --model FOLDER [--name NAME] [--label "vLLM 0.32"] [--problems 6] [--tokens 48]

The server must run already, with the model of FOLDER in float32. Both play two greedy attempts at the same problems;
given are how many texts, and how many outcomes, are the same. Texts that differ are printed.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import selfcorrect
from selfcorrect.endpoints.settings import Endpoint

RESULTS = Path(__file__).parent / "results" / "endpoint.json"


def main() -> None:
    """Evaluate both, print what is the same, add a line to the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--model", required=True, help="a folder, or lab")
    parser.add_argument("--name", help="the model's name there; by default FOLDER")
    parser.add_argument("--label", default="server")
    parser.add_argument("--problems", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=48)
    options = parser.parse_args()
    settings = ("task.name=countdown", f"evaluation.problems={options.problems}", "threads=1",
                f"rollouts.max_new_tokens={options.tokens}")  # fmt: skip
    exact = ("model.device=cpu", "model.precision=float32", "rollouts.rows_at_once=1")
    with tempfile.TemporaryDirectory() as folder:
        here = selfcorrect.evaluate(options.model, *settings, *exact, output=Path(folder) / "here")
        there = selfcorrect.evaluate(
            options.name or options.model, *settings, output=Path(folder) / "there", endpoint=Endpoint(options.url)
        )
    pairs = [
        (a, b)
        for x, y in zip(here.rollouts, there.rollouts, strict=True)
        for a, b in zip(x.attempts, y.attempts, strict=True)
    ]
    found: dict[str, Any] = {
        "model": Path(options.model).name, "texts": len(pairs),
        "same texts": sum(a.completion.text == b.completion.text for a, b in pairs),
        "same outcomes": sum(a.grade.outcome == b.grade.outcome for a, b in pairs),
    }  # fmt: skip
    print(f"{options.label}: {json.dumps(found)}")
    for a, b in pairs:
        if a.completion.text != b.completion.text:
            print(f"  here {a.completion.text!r}\n  there {b.completion.text!r}")
    told = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**told, options.label: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
