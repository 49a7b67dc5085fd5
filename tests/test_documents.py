"""The documents: their flags, commands, files, links, settings and Python code are those of the project."""

import ast
import contextlib
import importlib
import io
import itertools
import re
import shlex
import sys
from argparse import ArgumentParser
from functools import cache
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser as torchrun_parser

import test_solver
from files.errors import ConfigError
from runs.config import load_recipe

ROOT = Path(__file__).parent.parent
SCRIPTS = ("train_solver.py", "test_solver.py", "convert.py")
NAMES = [name for name in ("README.md", "README_zh.md", "CONTRIBUTING.md", "run_test.sh") if (ROOT / name).exists()]
NAMES += sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))
FOREIGN = {"--logdir", "--gpus", "--time", "--signal"}  # flags of TensorBoard and Slurm
PAPERS = [name for name in NAMES if name.endswith(".md")]


@cache
def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def fences(name, *languages):
    """The fenced blocks of a document in one of these languages; "" for none."""
    blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```", text_of(name), re.MULTILINE | re.DOTALL)
    return [block for language, block in blocks if language in languages]


# --- commands ---------------------------------------------------------------------------------------------------------


def expand(word):
    """Braces as bash expands them: a{1,2} is a1 a2."""
    if not (brace := re.fullmatch(r"(.*?)\{([^{}]*,[^{}]*)\}(.*)", word)):
        return [word]
    return [whole for part in brace[2].split(",") for whole in expand(brace[1] + part + brace[3])]


def commands(block):
    """(script, arguments) of each call of a Python script in lines of bash. In a for loop it is the first round."""
    block = re.sub(r"\\\n\s*", " ", block)
    for variable, value in re.findall(r"\bfor (\w+) in ([^\s;]+)", block):
        block = re.sub(rf"\$\{{?{variable}\b\}}?", value, block)
    for line in block.splitlines():
        tokens = shlex.shlex(line, posix=True, punctuation_chars=True)
        tokens.whitespace_split = True
        separators = {";", "&&", "||", "|", "&", "(", ")", "do", "done"}
        for separator, command in itertools.groupby(tokens, separators.__contains__):
            words = list(itertools.takewhile(lambda word: word not in {">", ">>", "2>", "<"}, command))
            python = [word for word in words if re.search(r"(^|/)(python3?|torchrun)$", word)]
            script = next((word for word in words if word.endswith(".py")), None)
            if not separator and python and script and "pytest" not in words and not any("$" in w for w in words):
                arguments = words[words.index(script) + 1 :]
                yield script, [whole for word in arguments for whole in expand(word)]


class Parsed(Exception):
    """Ends a script where its arguments have been read."""


def parse(script, arguments, monkeypatch):
    """The arguments as the script's parser reads them. It raises ConfigError or SystemExit."""
    original, read = ArgumentParser.parse_args, []

    def parse_and_end(*args, **keywords):
        read.append(original(*args, **keywords))
        raise Parsed

    with monkeypatch.context() as patch, contextlib.suppress(Parsed):
        patch.setattr(ArgumentParser, "parse_args", parse_and_end)
        patch.setattr(sys, "argv", [script, *arguments])
        patch.syspath_prepend(ROOT / Path(script).parent)
        importlib.import_module(Path(script).stem).main()
    return read[0]


def check(script, arguments, monkeypatch):
    """A command can be run as far as its arguments go: flags, samplers, and the keys and values of --set."""
    args = parse(script, arguments, monkeypatch)
    if script == "test_solver.py":
        test_solver.check_arguments(args)
        test_solver.samplers(args, 1000)
    if script == "train_solver.py":
        blocks = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))["Train_Data"]
        data_name = args.data_name if args.data_name in blocks else "Digits"  # or a block that its reader writes
        load_recipe(ROOT / "config.yaml", data_name, args.set)


def commands_of(name):
    inline = re.findall(r"`((?:\w+=\S+ )*(?:python|torchrun) [^`…]+)`", text_of(name))
    return [command for block in fences(name, "", "bash", "sh") + inline for command in commands(block)]


@pytest.mark.parametrize("name", PAPERS)
def test_every_command_can_be_parsed(name, monkeypatch):
    for script, arguments in commands_of(name):
        assert (ROOT / script).is_file(), script
        try:
            check(script, arguments, monkeypatch)
        except (ConfigError, SystemExit) as error:
            pytest.fail(f"{name}: python {script} {shlex.join(arguments)}: {error}")


def test_the_commands_are_found():
    found = {script for name in PAPERS for script, _ in commands_of(name)}
    assert found >= {"train_solver.py", "test_solver.py"}
    block = (
        "for w in raw ema; do\n  A=1 python test_solver.py --weights $w \\\n   --x {a,b}_{1,2}  # all\ndone | tee log\n"
    )
    expected = ["--weights", "raw", "--x", "a_1", "a_2", "b_1", "b_2"]
    assert list(commands(block)) == [("test_solver.py", expected)]
    assert list(commands("torchrun --n=4 train_solver.py --a > log && pip install b\npython c.py $D")) == [
        ("train_solver.py", ["--a"])
    ]


@pytest.mark.parametrize("name", [name for name in PAPERS if not name.startswith("README")])
def test_commands_fit_on_a_screen(name):
    lines = [line for block in fences(name, "", "bash", "sh") for line in block.splitlines()]
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize(
    "command",
    [
        "python train_solver.py --data_name Digits --sets a=1",
        "python train_solver.py --data_name Digits --set batchsize=3",
        "python train_solver.py",
        "python test_solver.py --model_path a.pt --test_mode random_gen --sample_info DDIM50",
        "python test_solver.py --model_path a.pt --test_mode compare --interp_mode lerp",
        "python convert.py a.pt",
    ],
)
def test_a_wrong_command_is_noticed(command, monkeypatch):
    ((script, arguments),) = commands(command)
    with pytest.raises((ConfigError, SystemExit)):
        check(script, arguments, monkeypatch)


# --- flags, targets and files -----------------------------------------------------------------------------------------


def flags_of(script, monkeypatch):
    """The long flags that a script's --help shows."""
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit):
        parse(script, ["--help"], monkeypatch)
    return set(re.findall(r"(?<![\w-])--\w+", out.getvalue()))


@pytest.mark.parametrize("name", NAMES)
def test_every_flag_exists(name, monkeypatch):
    benchmarks = {script for script in re.findall(r"benchmarks/\w+\.py", text_of(name)) if (ROOT / script).is_file()}
    known = {flag for action in torchrun_parser()._actions for flag in action.option_strings}
    known = known.union(*(flags_of(script, monkeypatch) for script in (*SCRIPTS, *sorted(benchmarks))))
    named = set(re.findall(r"(?<![\w-])--[A-Za-z]\w*", text_of(name)))
    assert named <= known | FOREIGN, named - known


@pytest.mark.parametrize("name", NAMES)
def test_every_make_target_and_file_exists(name):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    wanted = set(re.findall(r"(?:^|`)make ([a-z][\w-]*)", text_of(name), re.MULTILINE))
    assert wanted <= targets, wanted - targets
    files = set(re.findall(r"\b(?:python|bash|-r) ([\w/.-]+\.(?:py|sh|txt))", text_of(name)))
    rooms = "models|diffusion|datasets|utils|training|evaluation|sharing|benchmarks|tests|images"
    files |= set(re.findall(rf"(?<![\w/.])((?:{rooms})/[a-z_]\w*\.(?:py|png))", text_of(name)))
    assert [file for file in files if not (ROOT / file).exists()] == []


# --- links ------------------------------------------------------------------------------------------------------------


def links(name):
    """(text, target) of each relative link and picture."""
    found = re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", text_of(name))
    found += [("", target) for target in re.findall(r"(?:src|href)=\"([^\"]+)\"", text_of(name))]
    return [(text, target) for text, target in found if not re.match(r"[a-z]+:", target)]


def anchors(file):
    """The anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ +(.+?) *$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAPERS)
def test_every_link_leads_somewhere(name):
    assert links(name)
    for text, target in links(name):
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target
        if file.suffix == ".py" and (function := re.fullmatch(r"`(?:\w+\.)*(\w+)`", text)):  # named beside its file
            tree = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            defined = {node.name for node in tree if isinstance(node, ast.FunctionDef | ast.ClassDef)}
            assert function[1] in defined, (text, target)


# --- settings and Python code -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAPERS)
def test_every_block_of_settings_is_valid(name, tmp_path):
    for block in fences(name, "yaml"):
        content = yaml.safe_load(block)
        assert content.keys() <= {"Train_Setting", "Train_Data"}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"Train_Setting": {}, "Train_Data": {}} | content))
        for data_name in content.get("Train_Data", {}):
            load_recipe(tmp_path / "config.yaml", data_name)


@pytest.mark.parametrize("name", PAPERS)
def test_python_code_runs(name, trained, monkeypatch):
    """From the first block to the last, with a tiny run for every checkpoint. What needs diffusers is only parsed."""
    monkeypatch.chdir(ROOT)
    names = {}
    for block in fences(name, "python"):
        code = compile(re.sub(r'"[\w/]+\.(pt|safetensors)"', repr(str(trained)), block), name, "exec")
        if "diffusers" not in block:
            exec(code, names)


def test_every_picture_is_shown_and_can_be_redrawn(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    figures, drawn = importlib.import_module("figures"), set()
    monkeypatch.setattr(figures, "redraw", lambda command, folder, names: not drawn.update(names))
    monkeypatch.setattr(sys, "argv", ["figures.py"])
    with pytest.raises(SystemExit):
        figures.main()
    assert {file.name for file in (ROOT / "images").iterdir()} == drawn
    assert drawn == {Path(target).name for name in PAPERS for _, target in links(name) if "images/" in target}
