"""The command line: words -> calls of the library. Heavy imports wait until a command needs them.

A command returns its exit code, or nothing for 0. What a user can correct is a `Failure`, which
ends the command with one line.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import click

from sophon_bench import __version__
from sophon_bench.cli import (
    costs,
    datasets,
    looking,
    models,
    running,
    storing,
    submitting,
    telling,
)
from sophon_bench.cli.common import Refused
from sophon_bench.plugins.failures import Failure
from sophon_bench.results.files import remedy
from sophon_bench.results.untrusted import printable


class Terminated(KeyboardInterrupt):
    """SIGTERM: what batch systems send before they kill."""


class Group(click.Group):
    """Says what is wrong with the input in one line instead of a traceback."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().__call__(*arguments, **options)
        except SystemExit as error:
            _leave(error.code)
            raise

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **options)
        except click.UsageError as error:
            raise _refused(error) from error

    def invoke(self, context: click.Context) -> Any:
        warnings.showwarning = _warn
        try:
            with _terminable():
                context.exit(super().invoke(context) or 0)
        except KeyboardInterrupt as stop:
            sent = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
            words = "everything finished is kept, and the same command does the rest"
            click.echo(f"stopped by {sent.name}: {words}", err=True)
            context.exit(128 + sent)
        except click.UsageError as error:
            raise _refused(error) from error
        except Failure as error:
            kind = Refused if error.exit_code == Refused.exit_code else click.ClickException
            raise kind(printable(str(error))) from error
        except OSError as error:
            if error.errno in (None, errno.EPIPE):
                raise
            raise click.ClickException(remedy(error)) from error

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands by section, each with its first sentence."""
        width = max(len(str(name)) for name in self.commands)
        for title, section in SECTIONS.items():
            with formatter.section(title):
                room = formatter.width - width - 4
                lines = [(str(c.name).ljust(width), c.get_short_help_str(room)) for c in section]
                formatter.write_dl(lines)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends what is inside in good order, as Ctrl-C does."""

    def terminate(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(code: object) -> None:
    """End here if a plugin left threads that Python would wait for without an end."""
    loaded = sys.modules.get("sophon_bench.harness.containment")
    if loaded is not None and loaded.unending():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def _refused(error: click.UsageError) -> click.ClickException:
    """A usage error of click's in one line; no arguments at all still show the help."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error
    path = error.ctx.command_path if error.ctx else "sophon-bench"
    message = " ".join(error.format_message().split())
    return Refused(message if "Did you mean" in message else f"{message} (see '{path} --help')")


def _warn(message: Warning | str, *_rest: Any, **_named: Any) -> None:
    click.echo(f"warning: {printable(str(message))}", err=True)


SECTIONS = {
    "Run": (running.run, running.audit, running.study, running.tune),
    "Read results": (
        telling.table, telling.plot, telling.page, telling.cards, telling.pictures,
        telling.compare, costs.overhead,
    ),
    "Look up": (looking.list_, looking.show, looking.info, models.models),
    "Extend": (looking.new, looking.check, datasets.data),
    "Keep": (storing.store,),
    "Publish": (submitting.submit, submitting.verify, telling.freeze),
}  # fmt: skip
"""All commands, as the help shows them."""

SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}


@click.group(cls=Group, context_settings=SETTINGS)
@click.version_option(__version__, prog_name="sophon-bench")
def main() -> None:
    """Test models that claim to be non-fine-tunable, against tuned attackers.

    \b
    Examples:
      sophon-bench run --defense sophon-klu --attack @smoke
      sophon-bench list attacks
      sophon-bench show finetune
      sophon-bench table --format md

    Exit codes: 0 fine, 1 some cells failed or a regression was found, 2 bad input, 130 and 143
    stopped by Ctrl-C and by SIGTERM.
    """


for section in SECTIONS.values():
    for command in section:
        main.add_command(command)
