"""The command line. Nothing here imports torch: a stage is imported inside the command that runs it."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import click

from tokcli import __version__, terminal
from tokcli.cli import data_sets, inspect, pipeline
from tokcli.errors import Interrupted, TokError
from tokcli.training.signals import NothingCame, heard

INTERRUPTED = Interrupted("tok", "interrupted", next="Repeat the command to go on")


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """What the system refuses (a name too long, a disk that went away) is no fault of tok's; a mistaken word may hold anything, as names
    of files do that a shell completes.

    A loop ends well at a signal; one that comes before, after or between loops ends here.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        raise INTERRUPTED from None
    except click.ClickException as error:
        vars(error)["message"] = terminal.printable(error.message)
        raise
    except OSError as error:
        name = error.filename if isinstance(error.filename, str) else "tok"
        raise TokError(
            name[:200], error.strerror or str(error), next="Check the path, its permissions and the space on the disk"
        ) from error


class InOrder(click.Group):
    """Lists commands in the order of the pipeline, not of the alphabet; its errors are one line each."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order they were added."""
        return list(self.commands)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Read the command line, or print what it asks for (`--help`)."""
        with _one_line():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _one_line():
            return super().invoke(ctx)


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="tok")
def cli() -> None:
    """Turn image-understanding models into image tokenizers, and measure image generation with them.

    Each command writes an artifact folder and prints its path. Repeat a command to resume it.

    \b
      T=$(tok train-tokenizer --teacher clip --data photos/train)
      D=$(tok train-decoder --tokenizer $T)
      K=$(tok tokenize --tokenizer $T)
      P=$(tok train-proposal --mode nar --tokens $K)
      S=$(tok sample -n 100 --proposal $P --decoder $D)
      tok eval $T $D $P $S --reference photos/val
      tok viz-codebook --tokenizer $T
    """


for command in (*pipeline.COMMANDS, *data_sets.COMMANDS, *inspect.COMMANDS):
    cli.add_command(command)


def _interrupted_all_the_same(problem: "sys.UnraisableHookArgs") -> None:
    """End at a signal that came where Python drops exceptions, such as in the callback of a weak reference.

    Loops save at a signal. The one thing that they raise, while they wait for a batch, is met again at the second signal. Outside of
    them there is nothing to save.
    """
    if problem.exc_type is NothingCame:
        return
    if problem.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(problem)
        return
    click.echo(f"{INTERRUPTED}", err=True)
    os._exit(INTERRUPTED.exit_code)


def main() -> None:
    """The `tok` program: an expected failure is one line on stderr and an exit code, never a traceback."""
    # OpenMP threads that spin while they wait make two busy processes many times slower; set before torch is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.pop("MPLBACKEND", None)  # figures are drawn into files; matplotlib fails at a name that it does not know
    terminal.guard()
    sys.unraisablehook = _interrupted_all_the_same
    for number in heard():
        if number != signal.SIGINT:  # as it is: a shell's background jobs ignore it
            signal.signal(number, signal.default_int_handler)
    try:
        try:
            cli(prog_name="tok")
        except BaseException:
            terminal.give_up_stdout()
            raise
    except TokError as error:
        click.echo(f"{error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(1)
    except ImportError as error:
        if "map segment" not in str(error):
            raise
        click.echo(f"tok: out of memory. {error}. Allow this process more memory (ulimit -v).", err=True)
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "memory" in str(error).lower():
            click.echo(
                f"tok: out of memory. {str(error).splitlines()[0][:120] if str(error) else ''} Lower train.batch_size, "
                "or raise train.accumulate.",
                err=True,
            )
            sys.exit(1)
        raise
