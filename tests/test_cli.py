from __future__ import annotations

import json
import subprocess
import sys
from operator import itemgetter
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import TINY

from sophon_bench import __version__
from sophon_bench.cli import main
from sophon_bench.leaderboard.render import from_csv
from sophon_bench.plugins.registry import attacks, declared_names, defenses

FAST = ["--scenario", "tiny", "--steps", "2", "--samples", "20"]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def run(store: Path, *arguments: object) -> Result:
    return call("run", *FAST, "--store", store, *arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    store = tmp_path_factory.mktemp("store")
    result = run(
        store,
        "--attack",
        "finetune[lr=[0.01,0.03]]",
        "--seeds",
        "0-1",
        "--json",
        store / "out.json",
    )
    return store, result


def test_a_run_ends_with_the_table_its_meaning_and_where_the_records_are(
    finished: tuple[Path, Result],
) -> None:
    store, result = finished
    assert result.exit_code == 0, result.output
    for words in ("tuned envelope", "scratch", "original accuracy", "An attacker who chooses"):
        assert words in result.stdout
    assert str(store / "cells") in result.stdout
    assert "pretrain test_resnet seed=1: original" in result.stderr
    assert "left]" in result.stderr


def test_the_json_has_the_records_and_flat_rows_with_stable_keys(
    finished: tuple[Path, Result],
) -> None:
    content = json.loads((finished[0] / "out.json").read_text())
    assert set(content) == {"schema", "models", "asked", "cells", "hashes", "summary"}
    assert len(content["cells"]) == 2 * (1 + 2)
    assert {
        "scenario", "backbone", "defense", "attack", "samples", "seeds", "original_before",
        "original_after", "restricted_before", "restricted_after", "score", "resistance",
        "intactness", "trainability", "flags", "protect_cost", "peak_memory", "seconds", "status",
    } <= set(content["summary"][-1])  # fmt: skip
    assert "attack" not in content["summary"][0]
    cost = content["cells"][0]["cost"]
    assert cost["units"] > 0
    assert cost["flops"] > 0
    assert cost["seconds"] > 0


def test_tables_agree_with_the_records_in_every_format(finished: tuple[Path, Result]) -> None:
    store = finished[0]
    cells = json.loads((store / "out.json").read_text())["cells"]
    best = [
        max(zip(c["curve"]["selection"], c["curve"]["test"], strict=True), key=itemgetter(0))[1]
        for c in cells
        if c["attack"]["label"] == "scratch"
    ]
    for form, arguments in (("json", ["--store", store]), ("csv", ["--from", store / "out.json"])):
        result = call("table", "--format", form, *arguments)
        assert result.exit_code == 0, result.output
        rows = json.loads(result.stdout) if form == "json" else from_csv(result.stdout)
        (row,) = (r for r in rows if r.get("attack") == "scratch")
        assert float(row["restricted_after"]) == pytest.approx(sum(best) / 2)
    console = call("table", "--store", store).stdout
    markdown = call("table", "--store", store, "--format", "md").stdout
    shown = f"{100 * sum(best) / 2:.1f} ±"
    assert shown in console
    assert shown in markdown
    for trial in ("finetune[lr=0.01]", "finetune[lr=0.03]", "scratch"):
        assert f"| {trial} " in markdown
        assert f"\n{trial} " in console


def test_a_dry_run_shows_plan_and_cost_and_does_nothing(tmp_path: Path) -> None:
    result = run(tmp_path, "--defense", "sophon-ice", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "to do  pretrain test_resnet seed=0" in result.stdout
    assert "to do  attack none with scratch n=20 seed=0  (128 units)" in result.stdout
    assert "TFLOP" in result.stdout
    assert "minutes here" in result.stdout
    assert not list((tmp_path / "cells").iterdir())
    assert not list((tmp_path / "models").iterdir())


def test_a_run_whose_cells_fail_says_so_and_exits_with_one(tmp_path: Path) -> None:
    plugin = tmp_path / "idle.py"
    plugin.write_text(
        "from dataclasses import dataclass\n"
        "from sophon_bench.plugins.registry import attacks\n"
        "@attacks.register('idle')\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Idle:\n"
        "    def run(self, model, view):\n"
        "        for _ in view.batches(4):\n"
        "            yield model\n"
    )
    try:
        result = run(tmp_path / "store", "--plugin", plugin, "--attack", "idle")
    finally:
        attacks.remove("idle")
    assert result.exit_code == 1
    assert "failed: idle against none" in result.stderr
    assert "never changed a weight" in result.stderr
    assert "scratch" in result.stdout


BAD = [
    (["--defense", "sophon-icy"], "unknown defense 'sophon-icy'; did you mean 'sophon-ice'"),
    (["--attack", "finetun"], "did you mean 'finetune'"),
    (["--attack", "@smok"], "unknown suite '@smok'; did you mean '@smoke'"),
    (["--scenario", "tinny"], "did you mean 'tiny'"),
    (["--backbone", "resnet_18"], "did you mean 'resnet18'"),
    (["--attack", "finetune[lr=0.1"], "unbalanced brackets"),
    (["--attack", "finetune[lr=fast]"], "lr should be a valid number"),
    (["--attack", "finetune[lr=1,lr=2]"], "'lr' is given twice"),
    (["--attack", "finetune[lr=-1]"], "lr should be greater than 0"),
    (["--attack", "finetune[learning_rate=1]"], "has no parameter 'learning_rate'"),
    (["--attack", "finetune[schedule=cosine]"], "needs steps=N"),
    (["--defense", "sophon-ice[alpha=-1]"], "alpha should be greater than 0"),
    (["--samples", "0"], "between 2 and 40"),
    (["--samples", "4000"], "between 2 and 40"),
    (["--samples", "many"], "--samples takes numbers and ranges"),
    (["--seeds", "3-1"], "the range '3-1' is empty; did you mean 1-3?"),
    (["--seeds", "-1"], "--seeds takes numbers and ranges"),
    (["--seeds", "9" * 19], "--seeds takes numbers and ranges"),
    (["--seeds", "0-99999999999"], "the range '0-99999999999' has more than 10000 numbers"),
    (["--steps", "0"], "at least 1 step"),
    (["--steps", "few"], "'few' is not a valid integer"),
    (["--plugin", "missing.py"], "'missing.py' does not exist"),
    (["--device", "cuda:99"], "torch finds"),
    (["--device", "gpu"], "--device takes auto, cpu, cuda"),
    (["--device", "cuda:"], "--device takes auto, cpu, cuda"),
    (["--image-size", "8", "--scenario", "glyphs-digits"], "image_size"),
    (["--backbone", "test_vit", "--image-size", "24"], "24x24"),
    (["--threads", "0"], "0 is not in the range x>=1"),
    (["--json", "nowhere/out.json"], "cannot be written"),
    (["--attack", "finetune[lr=inf]"], "lr should be finite"),
    (["--attack", "smoke"], "did you mean '@smoke'?"),
    (["--attack", "finetune[preset=paper]"], "unknown preset of finetune 'paper'; there are none"),
    (["--backbone", "test_resnet[x=@y]"], "is not a number, a word"),
    (["--device", "cpu:7"], "no index for the CPU"),
    (["--config", "missing.yaml"], "cannot be read"),
    (["--defence", "none"], "No such option"),
    (["extra"], "unexpected extra argument"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_two_before_any_work(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = run(tmp_path, *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert not list((tmp_path / "cells").iterdir()) if (tmp_path / "cells").exists() else True


def test_a_broken_plugin_file_is_one_line(tmp_path: Path) -> None:
    for content, message in (
        ("def broken(:\n", "SyntaxError at line 1"),
        ("raise RuntimeError('at import')\n", "RuntimeError: at import"),
        ("x = 1\n", "registers nothing"),
    ):
        plugin = tmp_path / "plugin.py"
        plugin.write_text(content)
        result = run(tmp_path / "store", "--plugin", plugin)
        assert result.exit_code == 2
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


def test_unusable_stores_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    unwritable = run(tmp_path / "file")
    assert unwritable.exit_code == 2
    assert "cannot be written" in unwritable.stderr
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "store.json").write_text('{"schema": 0}')
    old = run(tmp_path / "old")
    assert old.exit_code == 2
    assert "written with schema version 0" in old.stderr


def test_a_config_file_mirrors_the_flags_and_flags_win(tmp_path: Path) -> None:
    yaml = tmp_path / "run.yaml"
    yaml.write_text(
        "scenario: tiny\nattack: ['finetune[lr=[0.1,0.2]]', scratch]\n"
        f"samples: [8, 20]\nseeds: 0-1\nsteps: 2\ndry-run: true\njson: {tmp_path / 'out.json'}\n"
    )
    toml = tmp_path / "run.toml"
    toml.write_text(
        'scenario = "tiny"\nattack = ["finetune[lr=[0.1,0.2]]", "scratch"]\n'
        'samples = [8, 20]\nseeds = "0-1"\nsteps = 2\ndry-run = true\n'
    )
    flags = call(
        "run", "--scenario", "tiny", "--attack", "finetune[lr=[0.1,0.2]]", "--attack", "scratch",
        "--samples", "8,20", "--seeds", "0-1", "--steps", "2", "--dry-run",
        "--store", tmp_path / "s",
    )  # fmt: skip
    stages = [line for line in flags.stdout.splitlines() if line.startswith("to do")]
    assert len(stages) == 2 * (1 + 1 + 2 * 3)
    for file in (yaml, toml):
        result = call("run", "--config", file, "--store", tmp_path / "s")
        assert [line for line in result.stdout.splitlines() if line.startswith("to do")] == stages
    fewer = call("run", "--config", yaml, "--seeds", "5", "--store", tmp_path / "s")
    assert "seed=5" in fewer.stdout
    assert "seed=0" not in fewer.stdout


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(("name", "text"), [("a.yaml", "data: '{}'"), ("a.toml", "data = '{}'")])
def test_a_config_file_may_say_where_data_is_and_may_begin_with_a_mark(
    tmp_path: Path, name: str, text: str, encoding: str
) -> None:
    file = tmp_path / name
    file.write_text(text.format(tmp_path / "sets"), encoding=encoding)
    result = call("run", "--config", file, "--scenario", "imagenette-cifar10", "--dry-run")
    assert result.exit_code == 2
    assert f"the folder of sets '{tmp_path / 'sets'}'" in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sedes: 1", "unknown key 'sedes'; did you mean 'seeds'"),
        ("7: 1", "unknown key '7'; there are: address, attack, "),
        ("- 1", "must map"),
        ("seeds:", "seeds has no value"),
        ("a: [", "malformed"),
    ],
)
def test_a_bad_config_file_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    result = call("run", "--config", file)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_lists_name_everything_and_suggest() -> None:
    assert "scratch" in call("list", "attacks").stdout
    assert "(control)" in call("list", "defenses").stdout
    assert "glyphs-digits" in call("list", "scenarios").stdout
    assert "@paper" in call("list", "suites").stdout
    resnets = call("list", "backbones", "test_resnet").stdout.split()
    assert resnets == ["test_resnet"]
    nothing = call("list", "attacks", "zzz")
    assert nothing.exit_code == 2


@pytest.mark.parametrize(
    "name", [*attacks.names(), *defenses.names(), "@smoke", "test_resnet", "tiny"]
)
def test_show_explains_every_name(name: str) -> None:
    result = call("show", name)
    assert result.exit_code == 0, result.output
    assert name.removeprefix("@") in result.stdout
    assert len(result.stdout.splitlines()) > 2


def test_show_of_an_unknown_name_suggests() -> None:
    result = call("show", "finetine")
    assert result.exit_code == 2
    assert "did you mean 'finetune'" in result.stderr
    assert call("show", "finetune", "--images", "x.png").exit_code == 2


def test_an_empty_store_has_no_table(tmp_path: Path) -> None:
    result = call("table", "--store", tmp_path)
    assert result.exit_code == 2
    assert "there is no store at" in result.stderr
    assert not list(tmp_path.iterdir())
    run(tmp_path, "--dry-run")
    assert "no records in" in call("table", "--store", tmp_path).stderr
    assert call("table", "--from", tmp_path / "none.json").exit_code == 2


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def module(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sophon_bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_package_runs_as_the_command() -> None:
    done = module("--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: sophon-bench [OPTIONS] COMMAND")
    bad = module("run", "extra")
    assert bad.returncode == 2
    assert "(see 'sophon-bench run --help')" in bad.stderr


@pytest.mark.slow
def test_the_package_runs_with_processes_that_it_starts(tmp_path: Path) -> None:
    done = module(
        "run", *FAST, "--plugin", TINY, "--attack", "finetune", "--workers", 2,
        "--store", tmp_path / "store",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len([*(tmp_path / "store" / "cells").iterdir()]) == 2


def test_help_and_completion_import_no_torch() -> None:
    code = (
        "import sys, contextlib\n"
        "from sophon_bench.cli import main\n"
        "for a in (['--help'], ['run', '--help'], ['plot', '--help'], ['study', '--help'],\n"
        "  ['tune', '--help'], ['list', 'studies'], ['cards', '--help'], ['audit', '--help'],"
        "  ['page', '--help'], ['verify', '--help']):\n"
        "    with contextlib.suppress(SystemExit): main(a)\n"
        "from click.shell_completion import ShellComplete\n"
        "shell = ShellComplete(main, {}, 'sophon-bench', '_X')\n"
        "found = shell.get_completions(['run', '--attack'], 'fine')\n"
        "print([c.value for c in found])\n"
        "heavy = ('torch', 'timm', 'pandas', 'matplotlib', 'vl_convert', 'jinja2')\n"
        "print([m for m in heavy if m in sys.modules])\n"
    )
    lines = python(code).splitlines()
    assert lines[-2:] == ["['finetune']", "[]"]


def test_completion_knows_every_installed_plugin() -> None:
    assert declared_names("attack") == [n for n in attacks.names() if n in declared_names("attack")]
    assert {"finetune", "scratch"} <= set(declared_names("attack"))
    assert {"none", "sophon-ice", "sophon-klu"} <= set(declared_names("defense"))


def test_the_version_is_the_packages() -> None:
    assert call("--version").stdout.strip().endswith(__version__)


@pytest.mark.parametrize(
    "command",
    [
        "run",
        "list",
        "show",
        "table",
        "plot",
        "pictures",
        "study",
        "tune",
        "cards",
        "audit",
        "page",
    ],
)
def test_every_help_has_examples(command: str) -> None:
    assert "Examples:\n  sophon-bench" in call(command, "--help").stdout.replace("    ", "  ")


@pytest.mark.parametrize("arguments", [["--foo"], ["rum"], ["list"], ["list", "atacks"]])
def test_usage_errors_are_one_line_too(arguments: list[str]) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1


def test_a_scenario_with_few_images_can_be_drawn(tmp_path: Path) -> None:
    result = call("show", "tiny", "--images", tmp_path / "x.png", "--store", tmp_path / "store")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_the_help_has_every_command_once_in_a_whole_sentence() -> None:
    text = call("--help").stdout
    lines = text.partition("\nRun:\n")[2].splitlines()
    named = [line.split()[0] for line in lines if line.startswith("  ")]
    assert sorted(named) == sorted(main.commands)
    assert "..." not in text.partition("Options:")[2]


def test_info_says_what_a_report_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOPHON_BENCH_DATA", str(tmp_path))
    found = json.loads(call("info", "--json", "--store", tmp_path / "store").stdout)
    assert found.keys() == {"versions", "devices", "data", "caches", "plugins"}
    assert found["versions"]["sophon-bench"] == __version__
    assert found["data"] == {"SOPHON_BENCH_DATA": str(tmp_path), "sets": []}
    assert found["caches"]["store exists"] is False
    assert not (tmp_path / "store").exists()
    counted = sum(found["plugins"]["attacks"].values())
    assert counted == len(attacks.names())
    lines = call("info", "--store", tmp_path / "store").stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == list(found)
    assert any(line.split() == ["store", "exists", "no"] for line in lines)
    assert any(line.split() == ["sets", "none"] for line in lines)


def test_a_quiet_run_says_its_results_alone(tmp_path: Path) -> None:
    run = ["run", *FAST, "--plugin", TINY, "--attack", "finetune", "--store", tmp_path / "store"]
    first = call(*run)
    assert "stages finished in" in first.stderr
    quiet = call(*run, "--quiet")
    assert quiet.stderr == ""
    assert quiet.stdout == first.stdout
    assert "pretrain tiny" not in call(*run).stderr
    assert "(2 of this run)" in quiet.stdout
    assert "pretrain test_resnet" in call(*run, "-v").stderr
