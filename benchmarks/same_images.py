"""Compare what two checkouts of `ldm` make of the same twenty command lines, byte for byte.

    python -m benchmarks.same_images [--pixels] OLD NEW

Each line runs in an empty folder of its own, once with each checkout, on the bundled models. Images
and the lines of manifests must be equal; differences are listed, and the exit code is then 1.
`--pixels` compares the pixels of the images alone, for versions that write other records.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

APPLE = "--prompt 'a red apple on a blue background'"
QUICK = f"{APPLE} --seed 7 --steps 6"
JOBS = "prompt,steps,seed\\na red apple,4,1\\na blue car,5,2\\na cat,4,3\\n"
RAMP = 'from PIL import Image; Image.linear_gradient("L").resize((128, 128)).save("ramp.png")'
LINES = [
    f"ldm txt2img {QUICK}",
    f"ldm txt2img {QUICK} --plms --n_samples 2",
    f"ldm txt2img {QUICK} --sampler dpmpp_2m --grid karras",
    f"ldm txt2img {QUICK} --sampler euler_ancestral --n_iter 2 -o '{{index}}-{{seed}}.png'",
    f"ldm txt2img {QUICK} --negative 'a cat' --scale 5 --rng cpu --noise stream",
    f"ldm txt2img {QUICK} --precision bf16",
    "ldm txt2img --prompt 'a (red:1.3) apple BREAK a [cat]' --seed 3 --steps 4 --n_samples 3",
    "ldm txt2img --prompt 'a {red|blue} car' --expand --seed 3 --steps 3 --n_samples 2",
    f"ldm txt2img {APPLE} --seed 7 --matrix steps=2,3 scale=3,7.5 --grid-xy",
    f"ldm txt2img {APPLE} --seeds 1,3-4 --steps 3 --variation-seed 7 --variation-strength 0.2",
    f"printf '{JOBS}' > jobs.csv; ldm txt2img --from-file jobs.csv --n_iter 2",
    f"printf '{JOBS}' > jobs.csv; ldm txt2img --from-file jobs.csv --workers 2",
    f"printf '{JOBS}' > jobs.csv; ldm txt2img --from-file jobs.csv --seed 5;"
    " rm outputs/*/samples/00001.png; ldm txt2img --from-file jobs.csv --seed 5 --resume",
    f"ldm txt2img {QUICK} -o a.png && ldm rerun a.png -o b.png",
    f"ldm txt2img {QUICK} -o a.png && ldm img2img -i a.png {QUICK} --strength 0.6",
    f"ldm txt2img {QUICK} -o a.png && ldm inpaint -i a.png --outpaint 32,0,0,0 {QUICK}",
    f"ldm txt2img {QUICK} -o a.png && python -c '{RAMP}' && "
    f"ldm depth2img -i a.png --depth ramp.png {QUICK} --save-depth depth.png",
    f"ldm txt2img {QUICK} -o a.png && ldm upscale -i a.png {QUICK} --noise-level 10",
    "printf 'a red apple --seed 1 --steps 3\\na cat --seed 2 --steps 3\\n' | ldm shell",
    "python scripts/txt2img.py --prompt 'a red apple' --ddim_steps 4 --n_samples 2 --n_iter 1",
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--pixels", action="store_true", help="Compare pixels, not files.")
    trees = parser.parse_args()
    different = 0
    for line in LINES:
        old, new = (
            run(line, tree.resolve(), pixels=trees.pixels) for tree in (trees.old, trees.new)
        )
        same = old == new and bool(old)
        different += not same
        print(f"{'same' if same else 'DIFFERENT':9}  {len(new):2} files  {line[:90]}", flush=True)
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                print(f"           {name}")
    print(f"{len(LINES) - different} of {len(LINES)} lines give the same files")
    return int(different > 0)


def run(line: str, tree: Path, *, pixels: bool) -> dict[str, str]:
    """The hashes of all files that a line leaves behind, with a checkout; or of images' pixels."""
    line = line.replace("ldm ", "python -m ldm ")
    line = line.replace("python ", f"'{sys.executable}' ").replace("scripts/", f"{tree}/scripts/")
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "2"}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, check=False
        )
        if done.returncode:
            print(done.stderr.decode()[-500:])
            return {}
        pattern = "*.png" if pixels else "*"
        paths = sorted(path for path in Path(folder).rglob(pattern) if path.is_file())
        return {
            path.relative_to(folder).as_posix(): hashlib.sha256(
                np.asarray(Image.open(path)).tobytes() if pixels else path.read_bytes()
            ).hexdigest()
            for path in paths
        }


if __name__ == "__main__":
    sys.exit(main())
