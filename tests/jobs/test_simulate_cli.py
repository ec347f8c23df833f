"""`longreel simulate`: what it prints agrees with the simulator, and errors say what to do."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from longreel.configs.schema import POLICIES, BlocksConfig
from longreel.jobs import simulate as simulation
from longreel.jobs.cli import app
from longreel.jobs.render import plan_render
from longreel.models.arch import ARCHS
from longreel.pipeline import calibrate as calibration
from longreel.pipeline.cost import model_cost
from longreel.pipeline.policies import make_schedule
from longreel.pipeline.simulate import count_slots


def run(options: str) -> str:
    result = CliRunner().invoke(app, ["simulate", *options.split()])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_the_classic_queue_prints_its_slots_as_one_object():
    row = json.loads(run("--policy dualparal --stages 8 --blocks 33 --steps 50 --json"))
    assert row["total_slots"] == 33 * 50 + 8 * 8 - 1
    assert row["idle_slots"] == 63
    assert row["stall_slots"] == 56
    assert (row["blocks"], row["latents"], row["tasks"]) == (33, 264, 1650)
    assert 0 < row["first_block_slots"] < row["total_slots"]


def test_the_default_is_a_queue_that_never_waits():
    text = run("--blocks 36")
    assert "dualparal-grouped, 36 blocks of 288 latents" in text
    assert "1807 in all, first block after 457" in text
    assert "7 slots of each stage (0.4%), 0 of them neither filling nor draining" in text


def test_torch_stays_out_of_it():
    code = (
        "import sys; from longreel.jobs.cli import app\n"
        "options = ['simulate', '--preset', 'wan2.1-t2v-14b', '--steps', '2', '--blocks', '3']\n"
        "app(options, standalone_mode=False)\n"
        "heavy = {'torch', 'ray', 'diffusers', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_numbers_of_the_policy_are_passed_on():
    options = "--policy forcing --steps 12 --latents 60 --stages 3 --size 4 --left 8 --stagger 2"
    row = json.loads(run(f"{options} --window 30 --json"))
    blocks = BlocksConfig(policy="forcing", size=4, left=8, stagger=2, window=30)
    slots = count_slots(make_schedule(blocks, 12, 60), 3)
    assert {name: row[name] for name in ("total_slots", "idle_slots", "late_slots")} == {
        "total_slots": slots.total_slots,
        "idle_slots": slots.idle_slots,
        "late_slots": slots.late_slots,
    }


def test_a_new_prompt_costs_a_slot_for_every_block_in_sight():
    options = "--policy causal --steps 4 --blocks 12 --stages 3 --json"
    plain, new = (json.loads(run(f"{options} {more}")) for more in ("", "--new-prompt 6"))
    assert new["tasks"] - plain["tasks"] == 4  # the sink, and nine latents in three blocks
    # nothing waits in between: each is read by the next at every stage
    assert new["total_slots"] - plain["total_slots"] == 4
    assert new["first_block_slots"] == plain["first_block_slots"]
    longer = json.loads(run(f"{options} --new-prompt 6 --new-prompt 7 --new-prompt 9"))
    assert longer["tasks"] - plain["tasks"] == 12


def test_comparing_shows_every_queue_on_every_number_of_stages():
    options = "--steps 4 --blocks 5 --stages 6 --compare"
    rows = json.loads(run(f"{options} --json"))["rows"]
    assert [(row["policy"], row["stages"]) for row in rows] == [
        (policy, stages) for policy in POLICIES if policy != "auto" for stages in (1, 2, 4, 6)
    ]
    assert {row["latents"] for row in rows} == {40}
    lines = run(options).splitlines()
    assert lines[0].split()[:5] == ["policy", "stages", "blocks", "tasks", "slots"]
    for line, row in zip(lines[1:], rows, strict=True):
        shown = [row[name] for name in ("policy", "stages", "blocks", "tasks", "total_slots")]
        assert line.split()[:5] == list(map(str, shown))


def test_what_an_order_is_made_for_is_compared_too():
    """The queues that are made for a number of stages are so for the one that is asked for."""
    rows = json.loads(run("--depth 3 --steps 8 --blocks 12 --stages 2 --compare --json"))["rows"]
    for row in rows:
        if row["policy"] in ("dualparal-grouped", "dualparal-staggered"):
            alone = f"--policy {row['policy']} --depth 3 --steps 8 --latents {row['latents']}"
            assert row == json.loads(run(f"{alone} --stages {row['stages']} --json"))


def test_what_a_preset_gives_its_own_queue_is_not_asked_of_the_others(tmp_path):
    preset = tmp_path / "mine.yaml"
    preset.write_text("blocks: {policy: dualparal, size: 3, left: 2, right: 1, levels: window}\n")
    rows = json.loads(run(f"--preset {preset} --blocks 3 --steps 4 --stages 2 --compare --json"))
    assert {row["policy"] for row in rows["rows"]} == {*POLICIES} - {"auto"}
    for policy in ("whole", "rolling"):
        alone = run(f"--preset {preset} --policy {policy} --latents 9 --steps 4 --json")
        assert json.loads(alone)["policy"] == policy


def test_a_model_adds_seconds_and_bytes():
    options = "--preset wan2.1-t2v-1.3b --policy dualparal --stages 6 --blocks 12 --steps 3"
    slow = json.loads(run(f"{options} --tflops 50 --json"))
    fast = json.loads(run(f"{options} --tflops 200 --json"))
    assert slow["total_s"] == pytest.approx(4 * fast["total_s"], rel=0.05)
    assert round(fast["hop_bytes"] / 1e6) == 77
    assert len(fast["peak_bytes"]) == len(fast["idle_share"]) == 6
    weights = 2 * 1_418_996_800  # the published 1.3B model's parameters in bfloat16
    assert weights * 0.9 / 6 < min(fast["peak_bytes"]) < weights
    assert "MB a pass of a window" in run(options)


def test_branches_of_their_own_take_twice_the_devices_and_little_more_than_half_the_time():
    options = "--preset wan2.1-t2v-1.3b --policy dualparal --steps 6 --blocks 12 --stages 3"
    shared = json.loads(run(f"{options} --json"))
    split = json.loads(run(f"{options} --cfg split --json"))
    assert (shared["devices"], split["devices"]) == (3, 6)
    assert (shared["stages"], split["stages"]) == (3, 3)
    assert split["total_slots"] == shared["total_slots"]  # of one pass, and not of two
    # passes in turn overlap on the stages of one chain
    assert shared["total_s"] / 2 < split["total_s"] < shared["total_s"] / 1.8
    assert split["hop_bytes"] == shared["hop_bytes"]
    assert len(split["peak_bytes"]) == 6
    assert (shared["branch_bytes"], split["branch_bytes"] > 0) == (0, True)
    text = run(f"{options} --cfg split")
    assert "3 for each branch of guidance, 6 devices, 72 tasks each" in text
    assert "GB between them in all" in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--cfg both", "parallel.cfg=both"),
        ("--cfg split --preset self-forcing-1.3b", "set parallel.cfg=batch"),
        ("--blocks 0", "--blocks=0 leaves nothing to simulate; give at least 1"),
        ("--latents 0", "--latents=0 leaves nothing"),
        ("--stages 0", "--stages=0 leaves nothing"),
        ("--steps 0", "--steps=0 makes no row of noise levels"),
        ("--policy dualparal-group", "did you mean dualparal-grouped?"),
        ("--policy whole", "give --latents"),
        ("--policy causal --right 3", "blocks.right=3 would be ignored"),
        ("--policy causal --depth 3", "blocks.depth=3 would be ignored"),
        ("--preset tiny --stages 5", "--stages=5 leaves 1 of them without a layer, as tiny has 4"),
        ("--preset tony", "did you mean tiny?"),
        ("--policy causal --blocks 9 --new-prompt 9", "--new-prompt=9 is no block after the first"),
        ("--policy causal --blocks 9 --new-prompt 0", "give one of 1 to 8"),
        ("--policy rolling --new-prompt 2", "blocks.recache=prompt would be ignored"),
        ("--calibrate", "--calibrate has no model to measure; name one with --preset"),
        ("--blocks 9 --latents 40", "--blocks=9 and --latents=40 both say how long"),
        ("--tflops 50", "--tflops=50 would be ignored, as slots are counted in"),
        ("--gbytes 5", "--gbytes=5 would be ignored"),
        ("--preset tiny --calibrate --tflops 50", "--tflops=50 would be ignored, as --calibrate"),
        ("--preset tiny --tflops 0", "--tflops=0 is no speed"),
        ("--preset tiny --gbytes nan", "--gbytes=nan is no speed"),
        ("--plot here.jpg", "--plot=here.jpg is written as PNG"),
        ("--preset tiny --calibrate --plot a.jpg", "--plot=a.jpg is written as PNG"),
        ("--preset tiny --calibrate --plot no/such/a.png", "no/such, which does not exist"),
    ],
)
def test_errors_are_a_sentence_with_a_way_out(options, words, tmp_path, monkeypatch):
    """Nothing is measured before they are found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(calibration, "calibrate", None)
    result = CliRunner().invoke(app, ["simulate", *options.split()])
    assert result.exit_code in (1, 2)
    assert result.stderr.startswith("longreel: ")
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_the_picture_shows_who_is_idle_when(tmp_path):
    options = "--policy dualparal --steps 4 --blocks 5 --stages 3"
    text = run(f"{options} --plot {tmp_path}/a.png")
    total = json.loads(run(f"{options} --json"))["total_slots"]
    assert str(total) in text
    schedule = make_schedule(BlocksConfig(policy="dualparal"), 4, 40)
    busy = play_slots(schedule, 3)
    with Image.open(tmp_path / "a.png") as image:
        width = (image.width - 84 - 24) / total
        for stage in range(3):
            for slot in range(total):
                at = (round(84 + (slot + 0.5) * width), 64 + 44 * stage + 18)
                grey = len(set(image.getpixel(at))) == 1
                assert grey == ((stage, slot) not in busy)


def play_slots(schedule, num_stages):
    """(stage, slot) of every task, each as early as its order and what it reads allow."""
    free, home, busy = [0] * num_stages, {}, set()
    for task in schedule.tasks():
        at = max(home.get(part.block, 0) for part in task.parts)
        for stage in range(num_stages):
            at = max(at, free[stage])
            busy.add((stage, at))
            at += 1
            free[stage] = at
        home.update((part.block, at) for part in task.written)
    return busy


def test_calibrating_measures_a_model_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    row = json.loads(run("--preset tiny --blocks 2 --steps 1 --calibrate --json"))
    assert row["stages"] == 4  # as many as the model has layers
    assert row["total_s"] > row["first_frame_s"] > row["first_block_s"] > 0


def test_what_was_measured_is_what_the_commonest_window_costs(monkeypatch):
    monkeypatch.setattr(calibration, "_seconds", lambda device, work: (work(), 2.0)[1])
    schedule = make_schedule(BlocksConfig(policy="dualparal", size=2, left=2, right=2), 3, 20)
    seconds = calibration.calibrate(
        ARCHS["tiny"],
        schedule,
        height=32,
        width=48,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    cost = model_cost(
        ARCHS["tiny"], height=32, width=48, dtype="float32", passes=1, seconds=seconds
    )
    (task,) = [task for task in schedule.tasks() if task.reads and task.written[0].block == 4][:1]
    # all four layers are run in a row
    assert cost.layer_seconds(task) == pytest.approx(2.0 / 4)
    beside = seconds.window + seconds.step
    assert cost.pass_seconds(task, 0, range(4)) == pytest.approx(2.0 + 2.0 + 2.0 + beside)
    assert min(seconds.window, seconds.step, seconds.copy) > 0
    assert seconds.decode_latent == 2.0


def test_a_render_splits_layers_by_what_was_calibrated_for_its_window(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    longreel = CliRunner().invoke
    stages = ["parallel.num_stages=2", "parallel.backend=local"]
    dry_run = ["render", "a cat", "--preset", "tiny", "--dry-run", *stages]
    assert "split as estimated (`longreel simulate --calibrate`" in longreel(app, dry_run).stdout
    options = "--preset tiny --policy whole --latents 5 --steps 1 --calibrate"
    done = longreel(app, ["simulate", *options.split()])
    assert done.exit_code == 0
    (path,) = (tmp_path / ".cache/longreel/calibration").iterdir()
    assert done.stderr == f"calibration: {path}\n"
    assert "split as measured on this device" in longreel(app, dry_run).stdout
    other = longreel(app, [*dry_run, "--frames", "21"])
    assert "split as estimated" in other.stdout


@pytest.mark.parametrize("policy", ["forcing", "dualparal-staggered", "dualparal-grouped"])
def test_a_preset_s_schedule_is_that_of_its_renders(policy):
    """Also what is left to us, for a model that knows windows of many levels."""
    setting = simulation.make_setting(
        preset="shapes", policy=policy, steps=None, num_blocks=None, num_latents=65, num_stages=2,
        cfg=None, numbers={},
    )  # fmt: skip
    plan = plan_render("a cat", preset="shapes", frames=257, overrides=[f"blocks.policy={policy}"])
    assert setting.schedule == plan.schedule
