"""The engine that keeps everything on every rank moves weights as torch's optimisers do."""

import pytest
import torch
from torch import nn

from longreel.parallel import ranks
from longreel.parallel.ranks import Ranks
from longreel.parallel.training import AdamW, WholeEngine

ALONE = Ranks(rank=0, num=1, device=torch.device("cpu"))
MUON = AdamW(beta1=0.9, beta2=0.98, weight_decay=0.01, clip=1.0, muon=True)


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 6)
        self.blocks = nn.ModuleList([nn.Linear(6, 6)])
        self.last = nn.Linear(6, 1)

    def forward(self, x):
        loss = self.last(self.blocks[0](self.first(x).relu()).relu()).square().mean()
        return loss, {}


def batch(step):
    return {"x": torch.randn(8, 4, generator=torch.Generator().manual_seed(step))}


def weights(engine):
    return [weight.clone() for weight in engine.weights()]


def test_muon_moves_the_layers_matrices_and_adamw_all_else_at_half_the_rate():
    toy, twin = Toy(), Toy()
    engine = WholeEngine(toy, MUON, ALONE, torch.float32)
    matrix = twin.blocks[0].weight
    rest = [p for p in twin.parameters() if p is not matrix]
    muon = torch.optim.Muon([matrix], 0.02, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, 0.01, (0.9, 0.98), weight_decay=0.01)
    for step in range(5):
        engine.step(batch(step), 0.02)
        loss, _ = twin(**batch(step))
        twin.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        muon.step()
        adamw.step()
    assert all(torch.equal(a, b) for a, b in zip(engine.weights(), twin.parameters(), strict=True))


def test_muon_alone_moves_what_is_matrices_all():
    """As low-rank sums are."""
    toy = Toy()
    toy.requires_grad_(False)
    toy.blocks[0].weight.requires_grad_(True)
    before = toy.blocks[0].weight.clone()
    WholeEngine(toy, MUON, ALONE, torch.float32).step(batch(0), 0.02)
    assert not torch.equal(toy.blocks[0].weight, before)


@pytest.mark.parametrize("muon", [False, True])
def test_an_engine_goes_on_bit_for_bit_from_what_it_saved(muon, tmp_path):
    adamw = AdamW(beta1=0.9, beta2=0.98, weight_decay=0.01, clip=1.0, muon=muon)
    straight = WholeEngine(Toy(), adamw, ALONE, torch.float32)
    for step in range(3):
        straight.step(batch(step), 0.02)
    straight.save(tmp_path)
    for step in range(3, 6):
        straight.step(batch(step), 0.02)
    resumed = WholeEngine(Toy(), adamw, ALONE, torch.float32)
    resumed.load(tmp_path)
    for step in range(3, 6):
        resumed.step(batch(step), 0.02)
    assert all(torch.equal(a, b) for a, b in zip(weights(straight), weights(resumed), strict=True))


def test_what_a_recorded_engine_saved_goes_on_without_recording():
    """A GPU's rates are tensors that a graph reads; a CPU's optimiser takes neither them nor the
    mark."""
    twins = [WholeEngine(Toy(), MUON, ALONE, torch.float32) for _ in range(2)]
    for engine in twins:
        engine.step(batch(0), 0.02)
    states = [dict(state) for state in twins[0]._optimizer.state_dict()]
    adamw = states[1]  # the other one is Muon, which has no such mark
    adamw["param_groups"] = [
        group | {"lr": torch.tensor(0.5), "capturable": True} for group in adamw["param_groups"]
    ]
    twins[0]._optimizer.load_state_dict(states)
    for engine in twins:
        engine.step(batch(1), 0.02)
    assert all(torch.equal(a, b) for a, b in zip(*map(weights, twins), strict=True))


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), ("cuda", "nccl")])
def test_ranks_meet_in_a_group_of_their_device(monkeypatch, tmp_path, device, backend):
    """Even one by itself, for DeepSpeed: gloo would take all that it gathers on a GPU through the
    host's memory."""
    made = []
    monkeypatch.setattr(ranks.dist, "init_process_group", lambda name, **more: made.append(name))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    ranks.join(0, 1, torch.device(device), tmp_path / "meeting")
    assert made == [backend]
