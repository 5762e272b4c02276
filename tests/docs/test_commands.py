"""Every command of every page is valid: its program exists, and its flags and config keys do.

Nothing runs: a program stops after parsing its command line.
"""

import argparse
import re
import runpy
import shutil
import sys
from functools import cache
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.docs.pages import ShownCommand, pages, shown_commands
from tests.source_tree import ROOT
from tokendetr.cli import main as console
from tokendetr.config import load_config

OVERRIDE = re.compile(r"(\+{0,2}|~)(model|train|dataloader|optimizer|lr_multiplier)\.[^\s=]+=")
# Files that a reader has or makes.
MINE = re.compile(r"(my_|output/|/path/to/|\.\.\.|runs?/)")


class Parsed(BaseException):
    """A program has parsed its command line."""


@pytest.fixture(autouse=True)
def _stop_after_parsing(monkeypatch):
    for name in ("parse_args", "parse_intermixed_args"):
        original = getattr(argparse.ArgumentParser, name)

        def parse(self, *arguments, _original=original, **options):
            raise Parsed(_original(self, *arguments, **options))

        monkeypatch.setattr(argparse.ArgumentParser, name, parse)


def parsed(words: list[str]) -> argparse.Namespace:
    """Return the command line as a Python program parses it."""
    program, *rest = words
    if program == "-m":
        program, *rest = rest

    def start() -> None:
        if words[0] == "-m":
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        elif program == "tokendetr":
            console.main(rest)
        else:
            sys.path.insert(0, str((ROOT / program).parent))
            runpy.run_path(str(ROOT / program), run_name="__main__")

    before = sys.argv, list(sys.path)
    sys.argv = [program, *rest]
    try:
        start()
    except Parsed as stopped:
        namespace: argparse.Namespace = stopped.args[0]
        return namespace
    finally:
        sys.argv, sys.path[:] = before
    raise AssertionError(f"{words} parsed nothing")


def _is_without_options(script: str) -> bool:
    """Return True for a script, or a folder's ``__main__``, that parses no command line."""
    path = ROOT / script / "__main__.py" if (ROOT / script).is_dir() else ROOT / script
    return path.is_file() and not script.startswith("tools/") and "parse" not in path.read_text()


@cache
def config_of(name: str, overrides: tuple[str, ...]):
    return load_config(name, overrides)


def check_config(command: ShownCommand, options: argparse.Namespace, words: list[str]) -> None:
    """Assert that the config exists, the overrides name its keys, and no option is one of them."""
    assert not [word for word in getattr(options, "opts", None) or [] if word.startswith("-")]
    named = getattr(options, "config_file", None) or getattr(options, "config", None) or []
    for name in [named] if isinstance(named, str) else named:
        if not MINE.match(name):
            overrides = [word for word in words if OVERRIDE.match(word) and not _is_mine(word)]
            config_of(name, tuple(overrides))


def _is_mine(override: str) -> bool:
    return override.split("=", 1)[0].endswith("data_folder") or override.endswith("=...")


def check(command: ShownCommand) -> None:
    """Assert that a command would start."""
    program, *rest = command.words
    if program == "torchrun":
        rest = ["python", *rest[rest.index("--nproc-per-node") + 2 :]]
        program = rest.pop(0)
    elif program == "srun":
        rest = rest[rest.index("python") :]
        program = rest.pop(0)
    if program == "make":
        check_make(rest)
    elif program == "pip":
        check_pip(rest, ROOT / Path(command.page).parent)
    elif program == "pytest":
        marker = f'"{rest[rest.index("-m") + 1]}: ' if "-m" in rest else ""
        assert marker in (ROOT / "pyproject.toml").read_text()
    elif program == "python" and rest[0] == "-c":
        compile(rest[1], command.page, "exec")
    elif program in ("tokendetr", "python"):
        if command.is_mentioned and Path(rest[0]).stem.isupper():  # python tools/NAME.py
            return
        if program == "python" and _is_without_options(rest[0]):
            assert not [word for word in rest[1:] if word.startswith("-")], command.text
            return
        words = ["tokendetr", *rest] if program == "tokendetr" else rest
        check_config(command, parsed(words), words)
    else:
        assert program in ("git", "cp", "cd", "unzip"), program


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^\.PHONY: (.*)$", makefile, flags=re.M)[0].split()
    for word in words:
        name, is_variable, _ = word.partition("=")
        if is_variable:
            assert re.search(rf"^{name} \?=", makefile, flags=re.M), word
        else:
            assert name in targets or set(name) <= set("|. "), word


def check_pip(words: list[str], folder: Path) -> None:
    for word in words[1:]:
        if word.startswith(".") or "/" in word:
            path = (folder if folder.name == "standalone" else ROOT) / word.partition("[")[0]
            assert path.exists(), word
        elif word.endswith(".txt"):
            assert (ROOT / word).is_file(), word


@pytest.mark.parametrize("page", [page for page in pages() if list(shown_commands(page))])
def test_the_commands_of_a_page_are_understood(page, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    config, wrong = None, []
    for command in shown_commands(page):
        if not OVERRIDE.match(command.words[0]):
            try:
                check(command)
            except (AssertionError, Exception, SystemExit) as error:
                said = capsys.readouterr().err.strip().splitlines()[-1:]
                if command.is_mentioned and "required" in "".join(said):
                    continue
                wrong.append(f"{command.text}\n    {type(error).__name__}: {error} {said}")
            if "--config-file" in command.words:
                config = command.words[command.words.index("--config-file") + 1]
        elif config is not None and not MINE.match(config):
            cfg = config_of(config, ())
            for word in command.words:
                key = word.split("=", 1)[0].lstrip("+~")
                if not word.startswith("+") and OmegaConf.select(cfg, key) is None:
                    wrong.append(f"{word}: {config} has no {key}")
    assert not wrong, "\n".join(wrong)


def test_every_program_shows_examples_in_its_help(capsys, monkeypatch):
    for name in console.COMMANDS:
        with pytest.raises(SystemExit) as ended:
            console.main([name, "--help"])
        shown = capsys.readouterr().out
        assert ended.value.code == 0, name
        examples = (f"tokendetr {name}", "python tools/")
        lines = [line for line in shown.splitlines() if line.lstrip().startswith(examples)]
        assert lines, f"{name} --help shows no example"


def test_every_tool_is_a_command_or_one_of_the_checkout():
    tools = {path.stem for path in (ROOT / "tools").glob("*.py")}
    commands = {
        command.target.split(":")[0].rsplit(".", 1)[1] for command in console.COMMANDS.values()
    }
    of_the_checkout = {"checklist", "code_figures", "calibrate_selection"}
    assert tools <= commands | of_the_checkout
    assert shutil.which("git")
