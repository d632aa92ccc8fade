"""How long until `ldm` answers, and what loading a checkpoint costs.

    python -m benchmarks.startup [--full] [--checkpoint FILE ...]

Without arguments the bundled model is loaded. `--full` writes a v1 checkpoint of full size (2 GB in
half precision, random numbers) into a temporary folder and loads that too. Two of its figures are
held to 1.15 times the size of the weights (else the exit code is 1): the peak of loading above bare
Python, and, once every weight has been read, the peak above an interpreter that imported torch.
The weights are mapped from the file, so they count as memory only from when they are read.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Cost, machine, run
from ldm.config import resource

LIMIT = 1.15  # peak memory over the size of the weights

HELP = "from ldm.cli import main\nmain()"
LOAD = """
import sys, time
from pathlib import Path
import torch
start = time.perf_counter()
from ldm.load import load_model
path = Path(sys.argv[1])
loaded = load_model(path, dtype=torch.float16)
print(time.perf_counter() - start)
"""
READ = """
import sys
from ldm.load import load_model
import torch
from pathlib import Path
model = load_model(Path(sys.argv[1]), dtype=torch.float16).model
print(sum(float(p.flatten()[:: 1 << 10].float().sum()) for p in model.parameters()))
"""


def random_checkpoint(folder: Path, name: str = "v1-inference") -> Path:
    """A checkpoint of full size with the keys and shapes of a packaged YAML, in half precision."""
    import torch
    from safetensors.torch import save_file

    from ldm.config import read_config
    from ldm.registry import build

    with torch.device("meta"):
        model = build(read_config(resource("configs") / "stable-diffusion" / f"{name}.yaml"))
    generator = torch.Generator().manual_seed(0)
    pool = 0.02 * torch.randn(1 << 20, generator=generator).half()
    tensors = {}
    for key, tensor in model.state_dict().items():
        if not tensor.is_meta:
            tensors[key] = tensor
        elif not tensor.is_floating_point():
            tensors[key] = torch.arange(tensor.numel()).reshape(tensor.shape)
        else:
            copies = -(-tensor.numel() // len(pool))
            tensors[key] = pool.repeat(copies)[: tensor.numel()].reshape(tensor.shape).clone()
    path = folder / f"random-{name}.safetensors"
    save_file(tensors, path)
    os.sync()  # or the writing would be measured with the loading
    return path


def show(what: str, cost: Cost, rest: str = "") -> None:
    print(f"{what:34} {cost.wall:7.2f} {cost.cpu:7.2f} {cost.peak / 2**20:9.0f}  {rest}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="also a full-size v1 file (2 GB)")
    parser.add_argument("--checkpoint", type=Path, action="append", default=[])
    wanted = parser.parse_args()

    print(machine())
    print(f"{'':34} {'wall s':>7} {'CPU s':>7} {'peak MiB':>9}")
    bare = run("", times=3)
    show("python, nothing imported", bare)
    show("ldm --help", run(HELP, ["--help"], times=5))
    show("ldm txt2img --help", run(HELP, ["txt2img", "--help"], times=5))
    torch_alone = run("import torch", times=3)
    show("import torch", torch_alone)

    bundled = resource("models") / "emoji-128.safetensors"
    paths = [*wanted.checkpoint, *([bundled] if bundled.exists() else [])]
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        if wanted.full:
            paths.append(random_checkpoint(Path(folder)))
        for path in paths:
            size = path.stat().st_size
            show(f"ldm info {path.name}", run(HELP, ["info", str(path)], times=3))
            loaded = run(LOAD, [str(path)], times=3)
            peak = (loaded.peak - bare.peak) / size
            inside = f"{float(loaded.out):.2f} s of it loading"
            show("  load as fp16", loaded, f"{inside}; peak above python {peak:.2f} of the file")
            read = run(READ, [str(path)])
            peak_read = (read.peak - torch_alone.peak) / size
            show("  and read it all", read, f"peak above torch {peak_read:.2f} of the file")
            failed |= size > 2**30 and max(peak, peak_read) > LIMIT
    if failed:
        print(f"a peak is more than {LIMIT} times the weights")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
