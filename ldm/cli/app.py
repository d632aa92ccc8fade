"""The command line: words in, a job out, errors to exit codes. Nothing here imports torch.

The options of a command are made from the fields of `Job` and `OutputPlan`.
"""

from __future__ import annotations

import atexit
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Annotated, Any, NoReturn

import typer
from typer.main import get_command

from ldm import __version__
from ldm.cli.flags import is_option, make_table, normalise, spread
from ldm.cli.help import GroupedCommand, GroupedGroup
from ldm.cli.parameters import argument, parameters
from ldm.errors import Interrupted, LdmError, OutputClosed, UsageError
from ldm.jobs.job import Job
from ldm.jobs.legacy import ORIGINAL_FLAGS, Legacy, SampleDiffusion
from ldm.jobs.options import nearest
from ldm.jobs.outputs import OutputPlan

app = typer.Typer(
    cls=GroupedGroup,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# typer brings its own copy of click in some versions, and none of its errors in public.
_CLICK_ERROR: type[Exception] = next(
    kind
    for kind in typer.BadParameter.__mro__
    if kind.__name__ == "ClickException" and issubclass(kind, Exception)
)

EXAMPLES = {
    "txt2img": 'ldm txt2img --prompt "a red apple on a blue background" --seed 7 -o apple.png',
    "img2img": 'ldm img2img -i sketch.png --prompt "a castle at dawn" --strength 0.7 -o castle.png',
    "inpaint": 'ldm inpaint -i room.png --mask sofa.png --prompt "a red sofa" -o room-2.png',
    "depth2img": 'ldm depth2img -m 512-depth-ema -i statue.jpg --prompt "a robot" -o robot.png',
    "upscale": "ldm upscale -i small.png --noise-level 20 -o large.png",
    "variations": "ldm variations -m sd21-unclip-h --image cat.png --image fox.png -o both.png",
    "sample": "ldm sample -m models/ldm/cin256-v2/model.ckpt --class 'golden retriever'",
    "sample_diffusion": "python scripts/sample_diffusion.py -r models/ldm/celeba256 -n 20 -c 100",
    "rerun": "ldm rerun outputs/txt2img-samples/samples/00000.png -o again.png",
    "shell": "ldm shell  # commands, prompts and jobs, a line each, from standard input",
    "tokens": 'ldm tokens "a (red:1.3) apple on a [blue] background"',
    "samplers": "ldm samplers  # with their names in other programs",
    "schema": "ldm schema  # the fields of a job of --from-file",
    "info": "ldm info models/sd-v1-4.ckpt",
    "models": "ldm models  # with family, precision, size and hash",
    "convert": "ldm convert models/sd-v1-4.ckpt sd-v1-4.safetensors --precision fp16 --ema drop",
    "train": "ldm train --config configs/train/emoji-128.yaml train.steps=2000",
}

RERUN_FIELDS = ("model", "config", "device", "precision", "attention", "vae", "depth_model")
RERUN_OUTPUTS = (
    "outdir", "output", "format_out", "quality", "no_metadata", "overwrite", "json", "progress",
    "quiet", "debug",
)  # fmt: skip
# Commands that only a script of the originals runs.
SCRIPT_COMMANDS = ("sample_diffusion",)
SAMPLE_FIELDS = (
    "classes", "seed", "noise", "rng", "schedule_compat", "config", "device", "precision",
    "attention",
)  # fmt: skip
SAMPLE_OUTPUTS = ("json", "print_config", "progress", "quiet", "debug")


def main(argv: Sequence[str] | None = None) -> None:
    """The program `ldm`; exits, without words given at once (see `_exit`)."""
    _exit(run(sys.argv[1:] if argv is None else argv), own=argv is None)


def main_script(command: str, argv: Sequence[str] | None = None) -> None:
    """A script of the originals, such as `txt2img`, with its defaults; exits like `main`."""
    words = sys.argv[1:] if argv is None else argv
    _exit(run([command, *words], script=True), own=argv is None)


def _exit(code: int, *, own: bool) -> NoReturn:
    """Exit; where the process is our own, without taking torch apart first.

    That takes half a second and serves nobody: files are closed by now, and the system takes all
    memory back at once. What was registered to be done at exit is done.
    """
    if own and "torch" in sys.modules:
        atexit._run_exitfuncs()
        with suppress(OSError):  # or else the usual way says what is wrong
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:  # closed before the start
                    stream.flush()
            os._exit(code)
    sys.exit(code)


def run(argv: Sequence[str], *, script: bool = False) -> int:
    """Run one command line and return its exit code; errors are one line on standard error."""
    try:
        return _dispatch(list(argv), script)
    except OutputClosed as error:
        _close_output()
        return _fail(str(error), error.exit_code, argv)
    except LdmError as error:
        return _fail(str(error), error.exit_code, argv)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("stopped", Interrupted.exit_code, argv)
    except BrokenPipeError:
        _close_output()
        return 1
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        return _fail(f"{named}{error.strerror or error}", LdmError.exit_code, argv)
    except _CLICK_ERROR as error:
        return _fail(_click_message(error), UsageError.exit_code, argv)
    except Exception as error:  # noqa: BLE001  (the last resort: an error is one line)
        reason = " ".join(str(error).split())
        text = f"{type(error).__name__}: {reason} (a fault of ldm; --debug shows where)"
        return _fail(text, LdmError.exit_code, argv)


def _close_output() -> None:
    """The reader of our output has closed it; write nothing more, not even at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(argv: list[str], script: bool) -> int:
    group = get_command(app)
    commands: Mapping[str, Any] = vars(group)["commands"]
    if argv and not is_option(argv[0]):
        command = commands.get(argv[0])
        if argv[0] == "shell" and not {"-h", "--help"} & set(argv):
            argv.insert(1, "--")  # its flags are those of the commands to come
        if command is None:
            known = ", ".join(name for name in commands if name not in SCRIPT_COMMANDS)
            hint = nearest(argv[0], commands)
            raise UsageError(f"no such command: {argv[0]}{hint} (commands: {known})")
        options = [
            (list(p.opts), not p.is_flag) for p in command.params if p.param_type_name == "option"
        ]
        table = make_table([*options, (["--help", "-h"], False)])
        words = spread(argv[1:], "--matrix")
        argv = [argv[0], *normalise(words, table, ORIGINAL_FLAGS)]
    code = group.main(args=argv, prog_name="ldm", standalone_mode=False, obj=script)
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int, argv: Sequence[str]) -> int:
    if "--debug" in argv:
        traceback.print_exc()
    if _wants_events(argv):
        from ldm.cli.report import emit

        emit("error", text=message, exit_code=code)
    else:
        typer.echo(f"ldm: error: {message}", err=True)
    return code


def _wants_events(argv: Sequence[str]) -> bool:
    """Whether standard error is read by a program."""
    return "--progress=jsonl" in argv or ("--progress", "jsonl") in pairwise(argv)


def _click_message(error: Any) -> str:
    message = " ".join(str(error.format_message()).split())
    if "unexpected extra argument" in message:
        return f"{message}; a prompt is given as --prompt '...'"
    return message


def _version(value: bool) -> None:
    if value:
        typer.echo(f"ldm {__version__}")
        raise typer.Exit


@app.callback()
def _ldm(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Generate images with latent diffusion models."""


def _command(
    name: str,
    body: Callable[[dict[str, Any], bool], int],
    options: Sequence[inspect.Parameter],
    arguments: Sequence[inspect.Parameter] = (),
) -> None:
    """Register a command whose options come from fields; `body` gets the given values by field."""

    def callback(ctx: typer.Context, **values: Any) -> int:
        given = {key: value for key, value in values.items() if value not in (None, [], ())}
        return body(given, bool(ctx.obj))

    context = inspect.Parameter(
        "ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
    )
    parameters = [context, *arguments, *options]
    vars(callback)["__signature__"] = inspect.Signature(parameters)
    callback.__annotations__ = {entry.name: entry.annotation for entry in parameters}
    callback.__doc__ = body.__doc__
    hidden = name in SCRIPT_COMMANDS
    epilog = f"Example: {EXAMPLES[name]}"
    app.command(name, cls=GroupedCommand, epilog=epilog, hidden=hidden)(callback)


# --- commands -----------------------------------------------------------------------------------


TASKS = {
    "txt2img": "Generate images from a text prompt.",
    "img2img": "Generate images from an image and a prompt.",
    "inpaint": "Fill the masked area of an image, or extend the image.",
    "depth2img": "Generate images with the depth of an image.",
    "upscale": "Upscale images by a factor of four.",
    "variations": "Generate variations of an image, or of a mix of several.",
    "sample": "Generate images with a model without text, or by class.",
}


def _task(name: str) -> Callable[[dict[str, Any], bool], int]:
    def body(given: dict[str, Any], script: bool) -> int:
        from ldm.cli.commands import generate

        return generate(name, given, script=script)

    body.__doc__ = TASKS[name]
    return body


def _sample_diffusion(given: dict[str, Any], script: bool) -> int:
    """Generate images with an unconditional model; model.params.x=1 overrides its config."""
    from ldm.cli.commands import generate_samples

    return generate_samples(given)


def _rerun(given: dict[str, Any], script: bool) -> int:
    """Generate an image again from the settings inside it."""
    from ldm.cli.commands import rerun

    return rerun(given.pop("image"), given)


for _name in TASKS:
    _kinds = (Job, OutputPlan, Legacy)
    _command(_name, _task(_name), [p for k in _kinds for p in parameters(k, task=_name)])
_command(
    "sample_diffusion",
    _sample_diffusion,
    [
        *parameters(SampleDiffusion),
        *parameters(Job, SAMPLE_FIELDS, task="sample"),
        *parameters(OutputPlan, SAMPLE_OUTPUTS),
    ],
    [argument("settings", list[str] | None, "KEY=VALUE", "Overrides of the config.", None)],
)
_command(
    "rerun",
    _rerun,
    [*parameters(Job, RERUN_FIELDS), *parameters(OutputPlan, RERUN_OUTPUTS)],
    [argument("image", str, "IMAGE", "An image made by ldm or another program.")],
)


@app.command(epilog=f"Example: {EXAMPLES['shell']}")
def shell(
    flags: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FLAGS]...", help="Flags for every image: --model, --steps ..."),
    ] = None,
) -> int:
    """Run commands, prompts or JSON jobs from standard input."""
    from ldm.cli.shell import shell as body

    commands: Mapping[str, Any] = vars(get_command(app))["commands"]
    able = [name for name in commands if name not in ("shell", "train", *SCRIPT_COMMANDS)]
    return body(flags or [], run, able)


@app.command(epilog=f"Example: {EXAMPLES['tokens']}")
def tokens(
    prompt: str = typer.Argument(..., metavar="PROMPT", help="The prompt."),
    model: str = typer.Option(
        None, "--model", "--ckpt", "-m", metavar="FILE", help="Checkpoint [the bundled model]."
    ),
    config: str = typer.Option(None, "--config", metavar="YAML", help="Model config (YAML)."),
    syntax: str = typer.Option(
        "a1111",
        "--prompt-syntax",
        metavar="a1111|comfy|weights|plain",
        help="Prompt syntax [a1111].",
    ),
    steps: int = typer.Option(
        None, "--steps", help="Steps that edits such as [x:y:0.5] are counted in [the model's]."
    ),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of errors."),
) -> int:
    """Show how a prompt is tokenized and weighted."""
    from ldm.cli.tokens import tokens as body

    return body(prompt, model=model, config=config, syntax=syntax, steps=steps, as_json=json)


@app.command(epilog=f"Example: {EXAMPLES['samplers']}")
def samplers(
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of errors."),
) -> int:
    """List the samplers and noise schedules with their names in other programs."""
    from ldm.cli.samplers import samplers as body

    return body(as_json=json)


@app.command(epilog=f"Example: {EXAMPLES['schema']}")
def schema(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of errors."),
) -> int:
    """Print the JSON schema of a job of --from-file."""
    from json import dumps

    from ldm.jobs.schema import job_schema

    typer.echo(dumps(job_schema(), indent=2))
    return 0


@app.command(epilog=f"Example: {EXAMPLES['info']}")
def info(
    file: str = typer.Argument(..., metavar="FILE", help="An image or a checkpoint."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
    raw: bool = typer.Option(False, "--raw", help="Print an image's texts as they are."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of errors."),
) -> int:
    """Show how an image was made, or what a checkpoint is."""
    from ldm.cli.commands import info as body

    return body(file, as_json=json, raw=raw)


@app.command(epilog=f"Example: {EXAMPLES['models']}")
def models(
    models_dir: Annotated[
        list[str] | None,
        typer.Option("--models-dir", metavar="FOLDER", help="List this folder, too."),
    ] = None,
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of errors."),
) -> int:
    """List the models in the model folders, with family, precision, size and hash."""
    from ldm.cli.models import models as body

    return body(models_dir or [], as_json=json)


@app.command(epilog=f"Example: {EXAMPLES['convert']}")
def convert(
    source: str = typer.Argument(..., metavar="FROM", help="A .ckpt or .safetensors file."),
    target: str = typer.Argument(..., metavar="TO", help="The new file, .ckpt or .safetensors."),
    precision: str = typer.Option(
        None, "--precision", metavar="fp16|fp32|bf16", help="Precision of the new file [unchanged]."
    ),
    ema: str = typer.Option(
        "keep", "--ema", metavar="keep|drop|only", help="What to do with the EMA weights."
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing file."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of errors."),
) -> int:
    """Convert a checkpoint: format, precision, EMA weights."""
    from ldm.cli.commands import convert as body

    return body(source, target, dtype=precision, ema=ema, overwrite=overwrite)


@app.command(epilog=f"Example: {EXAMPLES['train']}")
def train(
    config: str = typer.Option(..., "--config", "-b", metavar="YAML", help="Training config."),
    resume: bool = typer.Option(False, "--resume", help="Continue an interrupted run."),
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Override the config: train.seed=1"),
    ] = None,
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of errors."),
) -> int:
    """Train an autoencoder or a diffusion model."""
    from ldm.cli.commands import train as body

    return body(config, resume=resume, settings=settings or [])
