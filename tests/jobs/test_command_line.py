"""The command ``posefleet``: its verbs, help, completion, suggestions and errors."""

import ast
import dataclasses
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Literal

import pytest

from posefleet import command_line
from posefleet.command_line import Argument, Option, Place, documentation, options, parse
from posefleet.jobs import cli
from posefleet.models import available_methods, load_method
from posefleet.option_names import SYNONYMS, nearest
from posefleet.platform.config.cli import TRAIN, experiment_options
from posefleet.platform.config.experiment import Experiment

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "ray", "mlflow", "numpy", "cv2", "pydantic")
TWO_SCREENS = 100
"""Lines."""

COMMANDS = [[verb] for verb in cli.VERBS if verb != "train"] + [["train", method] for method in available_methods()]
JOBS = {path.stem: path for path in (ROOT / "jobs").glob("*.py") if path.stem not in ("__init__", "cli")}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, 120 columns wide."""
    command = [sys.executable, "-m", "posefleet.jobs.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"COLUMNS": "120"} | environment
    )


def light(program: str) -> str:
    """What a program prints that ends with status 0 and has imported none of ``HEAVY`` by then."""
    script = f"import runpy, sys\ntry: exec({program!r})\nexcept SystemExit as end: assert not end.code, end.code\n"
    script += f"finally: assert not set(sys.modules) & set({HEAVY}), set(sys.modules) & set({HEAVY})"
    environment = os.environ | {"COLUMNS": "120"}
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert output.returncode == 0, output.stderr
    return output.stdout


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_help_is_two_screens_and_needs_no_library(arguments: list[str]) -> None:
    lines = light(f"from posefleet.jobs.cli import main; main([*{arguments}, '--help'])").splitlines()
    assert lines[0].startswith(f"usage: posefleet {' '.join(arguments)}")
    assert 8 < len(lines) <= TWO_SCREENS
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("job", sorted(JOBS))
def test_help_of_a_job_needs_no_library(job: str) -> None:
    assert "--" in light(f"sys.argv = ['x', '--help']; runpy.run_path({str(JOBS[job])!r}, run_name='__main__')")


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_the_long_help_has_every_option_and_each_says_what_it_does(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    output = {}
    for asked in ("--help-all", "--help", cli.LIST_OPTIONS):
        with pytest.raises(SystemExit) as end:
            cli.main([*arguments, asked])
        assert end.value.code == 0
        output[asked] = capsys.readouterr().out
    for line in output[cli.LIST_OPTIONS].splitlines():
        flag = line.split()[0]
        assert f"  {flag} " in output["--help-all"] or flag == "--config", flag
    assert len(output["--help"]) <= len(output["--help-all"])


@pytest.mark.parametrize("method", available_methods())
def test_the_options_are_the_settings_themselves(method: str) -> None:
    """What is read of a file without importing it has the names, types, defaults and help of the imported classes."""
    model = options(load_method(method).Config, "model.")
    real = [option for each in options(Experiment) for option in (model if each.path == "model" else [each])]
    output = light(
        "from posefleet.platform.config.cli import experiment_options\n"
        f"for o in experiment_options({method!r}): print((o.path, o.type, o.required or o.default, o.help))"
    )
    assert output.splitlines() == [str((o.path, o.type, o.required or o.default, o.help)) for o in real]
    assert all(option.help for option in real)


@pytest.mark.parametrize("method", available_methods())
def test_a_job_and_the_command_take_the_same_options(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    job = subprocess.run(
        [sys.executable, f"jobs/train_{method}.py", cli.LIST_OPTIONS], capture_output=True, text=True, cwd=ROOT
    ).stdout
    with pytest.raises(SystemExit):
        cli.main(["train", method, cli.LIST_OPTIONS])
    assert job == capsys.readouterr().out
    assert "--optim.lr\n" in job and "--model." in job


def test_help_shows_settings_of_the_method_that_people_change() -> None:
    output = run("train", "smpr", "--help").stdout
    for option in ("--config", "--data.train", "--optim.lr", "--model.backbone.name", "--model.neck", "--run.name"):
        assert f"  {option} " in output
    assert "--train.stall_s" not in output
    assert {option.path for option in experiment_options()} >= set(TRAIN)


def test_help_shows_the_values_of_the_config_as_defaults(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("method: smpr\noptim: {lr: 0.125}\n")
    output = run("train", "smpr", "--config", str(config), "--help").stdout
    assert "(default: 0.125)" in output[output.index("--optim.lr ") :].partition("--optim.lr_batch")[0]


def test_the_overview_lists_the_verbs_in_the_order_of_work() -> None:
    output = run("--help").stdout
    places = [output.index(f"\n  {verb} ") for verb in cli.VERBS]
    assert places == sorted(places)
    assert " ".join(cli.VERBS) == (
        "doctor schema convert shard train import evaluate review compare tune promote export bundle verify "
        "predict serve demo"
    )
    assert run().stdout == output


def test_the_version_is_that_of_the_package() -> None:
    output = run("--version")
    assert output.returncode == 0 and output.stdout.startswith("posefleet ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tran"], "'tran' is no command; did you mean train?"),
        (["xyz"], "'xyz' is no command; there are doctor, schema"),
        (["train"], "the method is missing; give one of detposenet"),
        (["train", "smrp"], "unknown method 'smrp'; models/ has detposenet"),
        (["train", "smpr", "--optim.learning_rate", "1"], "--optim.learning_rate; did you mean --optim.lr?"),
        (["train", "smpr", "--batch-size", "8"], "--batch-size; did you mean --data.batch_size?"),
        (["train", "smpr", "--epochs=3"], "unknown option --epochs; did you mean --train.epochs?"),
        (["train", "smpr", "--workers", "2"], "--workers; did you mean --scaling.num_workers?"),
        (["train", "smpr", "--gpus", "2"], "--gpus; did you mean --scaling.use_gpu?"),
        (["train", "smpr", "--lr", "2"], "--lr; did you mean --optim.lr?"),
        (["train", "smpr", "--model.nek", "fpn"], "--model.nek; did you mean --model.neck?"),
        (["train", "smpr", "--qqq", "2"], "unknown option --qqq; --help-all lists all"),
        (["train", "smpr", "--optim.lr", "fast"], "--optim.lr fast: Input should be a valid number"),
        (["train", "smpr", "--model.neck", "x"], "--model.neck x: Input should be 'fpn', 'pafpn' or 'hrfpn'"),
        (["train", "smpr", "--scaling.use_gpu", "maybe"], "--scaling.use_gpu maybe: Input should be a valid boolean"),
        (["train", "smpr", "stray"], "'stray' belongs to no option"),
        (["train", "smpr", "--config", "none.yaml", "--help"], "none.yaml is no config file"),
        (["evaluate"], "--checkpoint is missing: A checkpoint, a run's folder"),
        (["evaluate", "--ckpt", "x"], "--ckpt; did you mean --checkpoint?"),
        (["predict", "--model"], "--model: expected one argument"),
        (["predict", "--threshold", "0.1"], "--threshold; did you mean --score-threshold?"),
        (["tune", "--method", "smpr"], "--space is missing"),
        (["tune", "--trials", "3"], "--trials; did you mean --samples?"),
        (["compare"], "give one of --methods, --runs, --search, --registry, --ablate"),
        (["compare", "--runs", "a", "--search", "b"], "not --runs and --search"),
        (["promote", "--run", "a"], "--to is missing; give --to champion or --to challenger"),
        (["promote", "--alias", "champion"], "--alias; did you mean --to?"),
        (["promote", "--run", "a", "--to", "best"], "--to best: Input should be 'champion' or 'challenger'"),
        (["export", "--checkpoint", "a", "--out", "b"], "--out must end in .onnx, .xml or .trt.onnx, not /"),
        (["shard", "--source", "a"], "--out is missing"),
        (["convert"], "PATH is missing: A data.yaml or the folder that has it (YOLO)"),
        (["doctor"], "PATH is missing: Data set folder, in COCO's layout"),
        (["serve", "none.yaml"], "no config file none.yaml; the shipped one is"),
        (["demo", "--size", "huge"], "--size huge: Input should be 'full' or 'mini'"),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    output = capsys.readouterr()
    assert end.value.code == 2
    assert output.err.startswith("error: ") and output.err.count("\n") == 1 and output.out == ""
    assert message in output.err


def test_a_mistyped_option_is_told_before_torch_is_imported() -> None:
    script = (
        "import sys\nfrom posefleet.jobs.cli import main\ntry: main(['train', 'smpr', '--optim.lr', 'fast'])\n"
        "except SystemExit as end: assert end.code == 2 and 'torch' not in sys.modules"
    )
    output = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert output.returncode == 0, output.stderr


def test_what_needs_a_library_is_taken_from_the_imported_module() -> None:
    script = (
        "import sys\nfrom posefleet.light_import import light_import as light\n"
        "assert light('posefleet.models.smpr', 'Config').__name__ == 'Config' and 'torch' not in sys.modules\n"
        "assert issubclass(light('posefleet.models.smpr', 'Model'), sys.modules['torch'].nn.Module)"
    )
    output = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert output.returncode == 0, output.stderr


ABOVE = {ROOT / "posefleet" / name for name in ("__init__.py", "api.py", "tracking.py")}
"""What callers of the package use, which stands above all packages."""


def test_no_package_imports_what_stands_above_it() -> None:
    for folder in ("data", "models", "platform", "serve", "jobs"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not re.search(r"posefleet\.(api|tracking)\b", path.read_text()), path


def test_what_all_commands_share_stands_below_the_packages() -> None:
    for path in {*(ROOT / "posefleet").glob("*.py")} - ABOVE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("posefleet"):
                assert node.module in (
                    "posefleet.light_import",
                    "posefleet.memory",
                    "posefleet.option_names",
                    "posefleet.platform.runtime.paths",  # these two need the standard library alone
                    "posefleet.platform.runtime.redaction",
                    "posefleet.platform.runtime.leftovers",  # imported when a command begins, not for --help
                ), path


def complete(line: str) -> list[str]:
    return run("--complete", COMP_LINE=line, COMP_POINT=str(len(line))).stdout.split()


def test_a_shell_completes_verbs_methods_options_and_choices() -> None:
    assert complete("posefleet t") == ["train", "tune"]
    assert complete("posefleet train l") == ["logocap"]
    assert complete("posefleet schema s") == list(cli.SCHEMA_ACTIONS) == ["show", "sigmas"]
    assert complete("posefleet schema --o") == ["--out"]
    assert complete("posefleet train smpr --optim.w") == [
        "--optim.weight_decay",
        "--optim.warmup_steps",
        "--optim.warmup_factor",
        "--optim.warmup",
    ]
    assert complete("posefleet train smpr --optim.name ") == ["sgd", "adamw"]
    assert complete("posefleet promote --to ch") == ["champion", "challenger"]
    assert complete("posefleet nothing --x") == []
    assert "complete -o default -C 'posefleet --complete' posefleet\n" in run("--completion").stdout


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_completion_script_is_one_that_the_shell_takes(shell: str) -> None:
    try:
        output = subprocess.run([shell, "-c", run("--completion").stdout], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip(f"no {shell} here")
    assert output.stderr == ""


# ------------------------------------------------------------------------------------------------- the parser


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part."""

    share: float = 0.5
    """Share."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Every kind of option."""

    place: Annotated[str, Argument("PLACE")] = "here"
    """Place."""
    many_words: int = 1
    """Number."""
    level: Literal[1, 2, "auto"] = "auto"
    """Level."""
    limit: float | None = 1.0
    """Limit."""
    sizes: tuple[int, ...] = (1, 2)
    """Sizes."""
    pair: tuple[float, float] = (0.0, 1.0)
    """Pair."""
    fast: bool = False
    """Fast."""
    part: Part = field(default_factory=Part)
    """Part."""


def parsed(*arguments: str, more: Sequence[Option] = ()) -> Sample:
    return parse(Sample, arguments, about="", more=more)[0]


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        ([], {}),
        (["there"], {"place": "there"}),
        (["--many-words", "3"], {"many_words": 3}),
        (["--many_words=3"], {"many_words": 3}),
        (["--many-words", "-3"], {"many_words": -3}),
        (["--level", "2"], {"level": 2}),
        (["--limit", "none"], {"limit": None}),
        (["--limit", "1e-3"], {"limit": 1e-3}),
        (["--sizes"], {"sizes": ()}),
        (["--sizes", "3", "4", "5", "--fast"], {"sizes": (3, 4, 5), "fast": True}),
        (["--pair", "2", "3"], {"pair": (2.0, 3.0)}),
        (["--fast", "true"], {"fast": True}),
        (["--fast", "True", "--fast", "false"], {"fast": False}),
        (["--part.share", "0.25"], {"part": Part(share=0.25)}),
    ],
)
def test_values_have_the_type_of_their_field(arguments: list[str], changes: dict[str, object]) -> None:
    assert parsed(*arguments) == dataclasses.replace(Sample(), **changes)


def test_options_of_something_else_are_handed_on_as_text() -> None:
    own, given = parse(
        Sample,
        ["--optim.lr", "1", "--model.a.b", "x", "y", "--many-words", "2"],
        about="",
        more=experiment_options(),
        open_section="model.",
    )
    assert own.many_words == 2
    assert given == {"optim.lr": ["1"], "model.a.b": ["x", "y"]}


@dataclass(frozen=True, kw_only=True)
class Places:
    """Options that name files."""

    source: Annotated[str, Place("PATH")] = ""
    """Source."""
    out: Annotated[str, Place("FOLDER")] = "runs/x"
    """Output."""
    name: str = "a/b"
    """Name."""


def test_paths_are_absolute_given_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSEFLEET_HOME", str(tmp_path))
    places, _ = parse(Places, [], about="")
    assert (places.source, places.out, places.name) == ("", f"{tmp_path}/runs/x", "a/b")
    places, _ = parse(Places, ["--source", "s3://a/b", "--out", "y", "--name", "c"], about="")
    assert (places.source, places.out, places.name) == ("s3://a/b", f"{tmp_path}/y", "c")


def test_the_help_of_a_field_is_the_string_below_it() -> None:
    assert documentation(Sample)["many_words"] == "Number."


def test_every_synonym_leads_to_an_option_that_exists(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in COMMANDS:
        with pytest.raises(SystemExit):
            cli.main([*arguments, cli.LIST_OPTIONS])
    known = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert {name for name in SYNONYMS if f"--{name}" not in known} == {"count"}, "of posefleet.data.synthetic.scenes"
    for option, others in SYNONYMS.items():
        for other in others.split():
            assert nearest(other, [option]) == option


def test_errors_of_the_system_name_the_file_first(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    for error, expected in (
        (FileNotFoundError(2, "No such file or directory", str(tmp_path / "a.pth")), f"{tmp_path}/a.pth: no such file"),
        (PermissionError(13, "Permission denied", b"/b"), "/b: permission denied"),
        (OSError("the store does not answer"), "the store does not answer"),
    ):
        command_line.report_error(error)
        assert capsys.readouterr().err.startswith(f"error: {expected}")


@pytest.mark.parametrize(
    ("verb", "said"),
    [("shard", "interrupted; the same command writes the shards that are missing"), ("doctor", "interrupted")],
)
def test_ctrl_c_is_one_line(
    verb: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(main=interrupted))
    assert cli.main([verb]) == 130
    assert capsys.readouterr().err.splitlines() == ["", said]
