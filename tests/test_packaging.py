"""The wheel works on its own: installed elsewhere, run from another folder.

Packages already installed here are lent to the new environment, so that nothing is fetched.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from tests.cpu_time import at_once

TOP = Path(__file__).parents[1]
BUNDLED = "emoji-128"
MADE = ("emoji-128", "emoji-128-inpaint", "emoji-128-depth", "emoji-128-x4")
KINDS = ("safetensors", "yaml")
CARDS = ("emoji-128.md", "emoji-128-sisters.md")
needs_model = pytest.mark.skipif(
    not (TOP / "models" / f"{BUNDLED}.safetensors").exists(), reason="the model is not made yet"
)


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel in it, and a folder to run things from."""

    wheel: Path
    bin: Path
    folder: Path

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one of the environment's programs, as a user with an empty home would."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LDM_"))}
        clean |= {"HOME": str(self.folder), "OMP_NUM_THREADS": "1"}
        program, *words = command
        done = subprocess.run(
            [str(self.bin / program), *words],
            cwd=self.folder,
            env=clean,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
        return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", *options, "-w", str(folder), str(TOP)], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    place = tmp_path_factory.mktemp("a clean environment")
    environment = place / "environment"
    venv.create(environment, symlinks=True, with_pip=True)
    bin_folder = environment / "bin"
    pip = [str(bin_folder / "python"), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    # What a .pth file names is searched last, and .pth files in there (an editable install of
    # this very project) are not read.
    (site_packages,) = environment.glob("lib/python*/site-packages")
    lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages / "lent.pth").write_text("\n".join(sorted(lent)), encoding="utf-8")
    folder = place / "somewhere else"
    folder.mkdir()
    return Installed(wheel, bin_folder, folder)


def test_the_wheel_has_the_configs(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {
        f"ldm/bundled/{p.relative_to(TOP).as_posix()}" for p in TOP.glob("configs/**/*.yaml")
    }
    assert configs
    assert configs <= names


@needs_model
def test_the_wheel_has_the_bundled_model(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    models = {f"ldm/bundled/models/{path.name}" for path in TOP.glob(f"models/{BUNDLED}*")}
    told = {f"{name}.{kind}" for name in MADE for kind in KINDS}
    assert {f"ldm/bundled/models/{name}" for name in (*told, *CARDS)} == models
    assert models == {name for name in names if name.startswith("ldm/bundled/models/")}


def test_the_wheel_has_the_package_and_nothing_beside_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    code = {path.relative_to(TOP).as_posix() for path in TOP.glob("ldm/**/*.py")}
    assert code == {name for name in names if name.endswith(".py")}
    assert {name.split("/")[0].split("-")[0] for name in names} == {"ldm", "ldm_cli"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_installed_code_is_the_wheels(installed: Installed) -> None:
    done = installed.run(
        "python", "-c", "import ldm.checkpoints.config as c; print(c.resource('configs'))"
    )
    folder = Path(done.stdout.strip())
    assert installed.bin.parent in folder.parents
    assert (folder / "stable-diffusion" / "v1-inference.yaml").is_file()


@needs_model
def test_an_image_from_the_wheel(installed: Installed) -> None:
    words = ["--prompt", "a red apple on a blue background", "--steps", "2", "--seed", "1"]
    installed.run("ldm", "txt2img", *words, "--n_iter", "1", "--n_samples", "1")
    (original,) = (installed.folder / "outputs" / "txt2img-samples" / "samples").iterdir()
    with Image.open(original) as image:
        image.load()
        assert image.size == (128, 128)
        assert "parameters" in image.info
        assert len(image.getcolors(maxcolors=128 * 128) or []) > 100


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["txt2img", "--help"], 0),
        (["--version"], 0),
        (["txt2img", "--no-such-flag"], 2),
        (["txt2img", "--prompt", "a cat", "--steps", "-3"], 2),
        (["txt2img", "--prompt", "a cat", "--ckpt", "missing.safetensors"], 2),
    ],
)
def test_a_quick_answer_without_torch(installed: Installed, words: list[str], code: int) -> None:
    at_once(lambda: installed.run("ldm", *words, check=False), code)
    program = (
        "import sys; from ldm.cli.app import run\n"
        f"run({words!r})\n"
        "sys.exit(33 if 'torch' in sys.modules else 0)"
    )
    done = installed.run("python", "-c", program, check=False)
    assert done.returncode == 0, done.stderr
