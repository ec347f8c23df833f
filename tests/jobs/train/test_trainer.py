"""The training loop in one process: what it learns, keeps, repeats and refuses."""

import json
import math
import resource
import shutil
from dataclasses import replace

import pytest
import torch
from forked_ranks import forked_processes
from PIL import Image
from toy_recipe import ToyRecipe, build_dying, build_toy

from longreel.configs.train_load import training_yaml
from longreel.configs.train_schema import OptimizerConfig, ReportConfig, RunConfig, TrainConfig
from longreel.configs.train_small import VaeTraining
from longreel.jobs.train.errors import TrainingError
from longreel.jobs.train.launch import train
from longreel.jobs.train.rates import learning_rate
from longreel.jobs.train.store import RunFolder
from longreel.jobs.train.trainer import Trainer, output_folder, seed_step
from longreel.parallel.ranks import Ranks

STEPS = 20
ALONE = Ranks(rank=0, num=1, device=torch.device("cpu"))


def config(folder, steps=STEPS, **run):
    return TrainConfig(
        steps=steps,
        run=RunConfig(output=str(folder), **run),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup=3, ema=0.9, clip=0.5),
        report=ReportConfig(log_every=4, sheet_every=8, save_every=6),
    )


def trainer(settings, recipe=None):
    folder = RunFolder(output_folder(settings))
    with folder.claimed(settings):
        pass
    return Trainer(settings, recipe or ToyRecipe(settings.run.seed), ALONE, lambda line: None)


def stop_before(step):
    """A `stopped` that is asked once a step."""
    asked = iter(range(1, 1000))
    return lambda: next(asked) >= step


def exported(folder):
    return torch.load(folder / "model" / "toy.pt")


def figures(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: v for name, v in line.items() if name != "time_s"} for line in lines]


def test_a_run_is_adamw_on_the_recipes_batches_and_exports_the_average(tmp_path):
    settings = config(tmp_path, dtype="float32")
    assert train(settings, build_toy)
    recipe = ToyRecipe(0)
    weights = [p for p in recipe.model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(weights, betas=(0.9, 0.99), weight_decay=0.0)
    average = [w.detach().clone() for w in weights]
    for step in range(STEPS):
        seed_step(0, step, 0)
        adamw.param_groups[0]["lr"] = learning_rate(settings.optimizer, step, STEPS)
        adamw.zero_grad()
        recipe.model(**recipe.batch(step, 0, 1))[0].backward()
        torch.nn.utils.clip_grad_norm_(weights, 0.5)
        adamw.step()
        decay = min(0.9, (1 + step) / (10 + step))
        average = [
            decay * a + (1 - decay) * w.detach() for a, w in zip(average, weights, strict=True)
        ]
    names = [name for name, p in recipe.model.named_parameters() if p.requires_grad]
    for name, expected in zip(names, average, strict=True):
        # another order of the same sum of two terms
        torch.testing.assert_close(exported(tmp_path)[name], expected, rtol=1e-5, atol=1e-7)


def test_it_learns(tmp_path):
    train(replace(config(tmp_path, steps=120), report=ReportConfig(log_every=4)), build_toy)
    losses = [line["loss"] for line in figures(tmp_path)]
    assert losses[-1] < 0.7 * losses[0]


def test_stopped_and_resumed_is_the_same_run_bit_for_bit(tmp_path):
    assert train(config(tmp_path / "straight"), build_toy)
    for stop in (10, 13):  # at neither a log line nor a due checkpoint, and between
        assert not trainer(config(tmp_path / "halting")).run(stop_before(stop - 9 * (stop > 10)))
    assert train(config(tmp_path / "halting"), build_toy)
    expected, again = exported(tmp_path / "straight"), exported(tmp_path / "halting")
    assert expected.keys() == again.keys()
    assert all(torch.equal(expected[name], again[name]) for name in expected)
    assert (tmp_path / "straight/sheet.png").read_bytes() == (
        tmp_path / "halting/sheet.png"
    ).read_bytes()


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(tmp_path):
    """Its log forgets the steps that are taken again."""
    assert train(config(tmp_path / "straight"), build_toy)

    class Killed(BaseException):
        pass

    def kill():
        raise Killed

    run = trainer(config(tmp_path / "killed"))
    with pytest.raises(Killed):
        run.run(lambda: kill() if run.step == 10 else False)
    (tmp_path / "killed/checkpoints/.step-00000010.part").mkdir()  # it died while it wrote
    assert [line["step"] for line in figures(tmp_path / "killed")] == [4, 8]
    assert train(config(tmp_path / "killed"), build_toy)
    expected, again = exported(tmp_path / "straight"), exported(tmp_path / "killed")
    assert all(torch.equal(expected[name], again[name]) for name in expected)
    steps = [line["step"] for line in figures(tmp_path / "killed")]
    assert steps == sorted(set(steps))
    assert figures(tmp_path / "killed")[-1] == figures(tmp_path / "straight")[-1]


def test_the_last_two_checkpoints_are_kept(tmp_path):
    train(config(tmp_path), build_toy)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000018", "step-00000020"]


@pytest.mark.parametrize("damaged", ["weights.pt", "ema-0.pt", "state.json"])
@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 and no more", None])
def test_a_damaged_checkpoint_is_named_with_the_way_to_the_one_before(tmp_path, damaged, data):
    assert train(config(tmp_path), build_toy)
    before, last = sorted((tmp_path / "checkpoints").iterdir())
    expected = exported(tmp_path)
    (last / damaged).unlink()
    if data is not None:
        (last / damaged).write_bytes(data)
    with pytest.raises(TrainingError) as error:
        train(config(tmp_path), build_toy)
    assert f"the checkpoint {last} cannot be loaded (" in str(error.value)
    assert "remove that folder" in str(error.value)
    shutil.rmtree(last)
    said = []
    run = Trainer(config(tmp_path), ToyRecipe(), ALONE, said.append)
    assert run.run()
    assert said[0] == f"goes on after step 18, from {before}"
    assert all(torch.equal(expected[name], again) for name, again in exported(tmp_path).items())


def test_a_checkpoint_that_finds_no_room_is_said_and_the_one_before_stays(tmp_path, monkeypatch):
    run = trainer(config(tmp_path))
    with pytest.raises(TrainingError) as error, monkeypatch.context() as small:
        run.run(lambda: run.step == 10 and bool(fill_the_disk(small)))
    assert f"the checkpoint of step 12 cannot be written to {tmp_path} (" in str(error.value)
    assert f"goes on from {tmp_path}/checkpoints/step-00000006" in str(error.value)
    assert train(config(tmp_path), build_toy)


def test_a_model_that_finds_no_room_is_said_and_written_by_the_same_command(tmp_path, monkeypatch):
    run = trainer(config(tmp_path))
    export = run._shown.export

    def full(folder):
        with monkeypatch.context() as small:
            fill_the_disk(small)
            export(folder)

    run._shown.export = full
    with pytest.raises(TrainingError, match=rf"the model cannot be written to {tmp_path} \("):
        run.run()
    assert not (tmp_path / "model").exists()
    assert train(config(tmp_path), build_toy)
    assert exported(tmp_path)


def fill_the_disk(monkeypatch):
    """To torch, whose errors are not Python's: files end after a kilobyte."""
    save = torch.save

    def cut(content, path):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            save(content, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(torch, "save", cut)


def test_minutes_too_call_for_a_checkpoint(tmp_path):
    settings = config(tmp_path)
    often = ReportConfig(log_every=4, sheet_every=8, save_every=1000, save_minutes=1e-3)
    run = trainer(TrainConfig(**{**vars(settings), "report": often}))
    run._saved_at -= 1
    run.run(stop_before(2))
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept[0] == "step-00000001"


def test_a_finished_run_is_only_exported_again(tmp_path):
    train(config(tmp_path), build_toy)
    before, log = exported(tmp_path), (tmp_path / "log.jsonl").read_bytes()
    (tmp_path / "model/toy.pt").unlink()
    assert train(config(tmp_path), build_toy)
    assert all(torch.equal(before[name], exported(tmp_path)[name]) for name in before)
    assert (tmp_path / "log.jsonl").read_bytes() == log


def test_an_export_that_was_cut_short_leaves_no_model_and_is_made_again(tmp_path, monkeypatch):
    process = forked_processes(monkeypatch).Process(
        target=train, args=(config(tmp_path), build_dying)
    )
    process.start()
    process.join(timeout=200)
    assert process.exitcode == 7
    assert not (tmp_path / "model").exists()
    assert train(config(tmp_path), build_toy)
    assert exported(tmp_path)
    assert list(tmp_path.rglob("*.part")) == []


def test_the_pictures_show_the_average_and_the_training_goes_on_without_it(tmp_path):
    shown = []

    class Watched(ToyRecipe):
        def sheet(self):
            shown.append(self.model.first.weight.detach().clone())
            return super().sheet()

    recipe = Watched()
    run = trainer(config(tmp_path), recipe)
    run.run()
    assert len(shown) == 3
    assert not torch.equal(shown[-1], recipe.model.first.weight)
    assert torch.equal(shown[-1], exported(tmp_path)["first.weight"])
    for name in ("sheet.png", "curves.png"):
        with Image.open(tmp_path / name) as image:
            image.load()
            assert image.width >= 40


@pytest.mark.parametrize("first_bad", [0, 7])
def test_a_loss_that_is_lost_ends_the_run_and_spoils_no_checkpoint(tmp_path, first_bad):
    run = trainer(config(tmp_path), ToyRecipe(bad_step=first_bad))
    with pytest.raises(TrainingError, match=r"lower optimizer\.learning_rate") as error:
        run.run()
    kept = list((tmp_path / "checkpoints").iterdir())
    assert [path.name for path in kept] == (["step-00000006"] if first_bad else [])
    assert f"step {first_bad + 1} " in str(error.value)
    assert (str(kept[0]) if kept else "no checkpoint") in str(error.value)


def test_the_rate_rises_over_the_warm_up_and_falls_to_the_final_share():
    optimizer = OptimizerConfig(learning_rate=2.0, warmup=10, final=0.1)
    rates = [learning_rate(optimizer, step, 110) for step in range(110)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == 2.0
    assert max(rates) == 2.0
    assert rates[-1] == pytest.approx(0.2)
    middle = 10 + 99 / 2
    expected = 0.2 + 1.8 * (1 + math.cos(math.pi * (60 - 10) / 99)) / 2
    assert rates[60] == pytest.approx(expected)
    assert rates[int(middle)] > 1.1 > rates[int(middle) + 1]


def test_another_runs_folder_is_refused_by_what_differs(tmp_path):
    train(config(tmp_path, steps=4), build_toy)
    with pytest.raises(ValueError, match=r"steps=4.*cannot go on with steps=5.*set steps=4"):
        train(config(tmp_path, steps=5), build_toy)
    with pytest.raises(ValueError, match=r"run\.dtype=bfloat16.*run\.dtype=float32"):
        train(config(tmp_path, steps=4, dtype="float32"), build_toy)


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="not of a training run"):
        train(config(tmp_path), build_toy)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_that_was_only_begun_is_no_other_s(tmp_path):
    """Its process was killed while it wrote down what the run is."""
    for name in (".lock", ".run.yaml.0123abcd.part"):
        (tmp_path / name).touch()
    assert train(config(tmp_path, steps=1), build_toy)
    assert list(tmp_path.glob(".*.part")) == []


def test_a_run_that_began_when_what_it_would_ignore_was_let_pass_goes_on(tmp_path):
    """It was read no more, so that days of training were lost over a number without effect."""
    settings = replace(
        config(tmp_path / "old"),
        vae=VaeTraining(encoder=False, start="a", size=0.2),
    )
    with pytest.raises(ValueError, match=r"vae\.size=0\.2 would be ignored"):
        train(settings, build_toy)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "run.yaml").write_text(training_yaml(settings))
    RunFolder(tmp_path / "old").check(settings)


def test_how_often_it_reports_may_change_between_runs(tmp_path):
    settings = config(tmp_path)
    assert not trainer(settings).run(stop_before(5))
    other = TrainConfig(**{**vars(settings), "report": ReportConfig(log_every=1)})
    assert train(other, build_toy)


def test_a_line_that_a_full_disk_has_cut_short_is_left_out(tmp_path):
    folder = RunFolder(tmp_path)
    with folder.claimed(config(tmp_path)):
        folder.log({"step": 4, "loss": 1.0})
        folder.log({"step": 8, "loss": 0.5})
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text()[:-9])
    assert folder.lines() == [{"step": 4, "loss": 1.0}]
    folder.forget_after(4)
    folder.log({"step": 8, "loss": 0.5})
    assert [line["step"] for line in folder.lines()] == [4, 8]
