"""How programs end (Ctrl-C, a reader that leaves, expected errors), their summaries and help."""

import argparse
import ast
import os
import re
import signal
import subprocess
import sys

import pytest

from tests.source_tree import ROOT
from tokendetr.cli import main as console
from tokendetr.cli.program import program
from tokendetr.errors import ConfigError
from tokendetr.io.progress import Progress


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (ConfigError("no such key"), "error: no such key"),
        (KeyError("no config 'a'"), "error: no config 'a'"),
        (MemoryError(), "error: out of memory"),
        (MemoryError("12 TiB"), "error: out of memory: 12 TiB"),
        (KeyboardInterrupt(), 128 + signal.SIGINT),
    ],
)
def test_expected_ends_are_in_words_or_silent(error, ending):
    @program(KeyError)
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == ending


def test_other_errors_keep_their_traceback():
    @program(KeyError)
    def main():
        raise TypeError("a mistake in the program")

    with pytest.raises(TypeError, match="a mistake in the program"):
        main()


def test_a_working_folder_that_is_gone_is_said(tmp_path, monkeypatch):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()

    @program()
    def main():
        raise AssertionError("must not begin")

    with pytest.raises(SystemExit, match="the working folder was removed"):
        main()


def test_sigterm_ends_a_program_as_an_exception():
    before = signal.getsignal(signal.SIGTERM)
    cleaned = []

    @program()
    def main():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            cleaned.append(True)

    with pytest.raises(SystemExit) as end:
        main()
    assert (end.value.code, cleaned) == (128 + signal.SIGTERM, [True])
    assert signal.getsignal(signal.SIGTERM) is before


def test_names_are_printed_where_the_terminal_has_ascii_alone():
    script = "from tokendetr.cli.program import program; program()(lambda: print('\\u00fc'))()"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    printed = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, check=False
    )
    assert (printed.returncode, printed.stdout) == (0, b"\\xfc\n"), printed.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_output_that_cannot_be_written_is_an_error_in_one_line():
    script = "from tokendetr.cli.program import program; program()(lambda: print('x'))()"
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            [sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert ended.returncode != 0 and b"error: [Errno 28]" in ended.stderr
    assert b"Traceback" not in ended.stderr


def test_a_program_may_run_without_an_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    program()(lambda: print("nothing", list(Progress(range(3)))))()


def test_a_reader_that_is_gone_ends_the_program_without_a_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "tokendetr", "list"]
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}  # those of a real detrex
    listing = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=quiet, check=False)
    os.close(writer)
    assert (listing.returncode, listing.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize("script", sorted((ROOT / "tools").glob("*.py")), ids=lambda p: p.stem)
def test_a_script_of_tools_runs_a_program_and_has_its_summary(script):
    source = script.read_text()
    (module,) = re.findall(r"^from tokendetr\.cli\.(\w+) import main$", source, re.MULTILINE)
    described = ast.parse((ROOT / f"tokendetr/cli/{module}.py").read_text())
    summary = ast.get_docstring(described).partition("\n")[0]
    assert ast.get_docstring(ast.parse(source)) == summary


class Parsing(BaseException):
    """A program parses its command line."""


@pytest.mark.parametrize("command", console.COMMANDS)
def test_the_help_of_a_command_explains_every_option_in_words(command, monkeypatch):
    def stop(parser, *arguments, **options):
        raise Parsing(parser)

    for name in ("parse_known_args", "parse_known_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, stop)
    monkeypatch.setattr(sys, "argv", [])
    interrupted = signal.getsignal(signal.SIGINT)
    with pytest.raises(Parsing) as stopped:
        console.main([command])
    signal.signal(signal.SIGINT, interrupted)  # a training handles it
    (parser,) = stopped.value.args
    unexplained = [each.option_strings or each.dest for each in parser._actions if not each.help]
    assert unexplained == []
    assert "Shapes:" not in parser.format_help() and "{'" not in parser.format_help()


def test_the_help_of_an_evaluation_offers_nothing_of_a_training(capsys):
    with pytest.raises(SystemExit):
        console.main(["evaluate", "--help"])
    shown = capsys.readouterr().out
    assert "--images" in shown and "tokendetr evaluate --config-file" in shown
    assert "--resume" not in shown and "tokendetr train" not in shown
