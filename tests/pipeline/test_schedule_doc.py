"""docs/schedule.md says what the code does."""

import json
import re
from pathlib import Path

import pytest
from any_schedule import NUMBERS, QUEUES
from command import longreel

from longreel.configs.schema import BlocksConfig
from longreel.pipeline.policies import make_schedule
from longreel.pipeline.simulate import count_slots

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "schedule.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.split("|")[1:-1]] for line in TEXT.splitlines()]
ROWS = [row for row in ROWS if len(row) == 5]
SLOTS = [row for row in ROWS if all(re.fullmatch("[0-9,]+", cell) for cell in row[1:])]
POLICIES = {row[0].strip("`"): row for row in ROWS if row not in SLOTS}


def test_every_test_that_is_named_exists():
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    files = (ROOT / "tests" / "pipeline").glob("test_*.py")
    found = {
        name for path in files for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert len(named) > 10
    assert named <= found


@pytest.mark.parametrize("policy", QUEUES)
def test_the_table_has_each_policy_with_its_defaults(policy):
    taken = dict(re.findall(r"`(\w+)` (\d+)", POLICIES[policy][-1]))
    assert set(NUMBERS[policy]) <= set(re.findall(r"`(\w+)`", POLICIES[policy][-1]))
    given = {name: int(value) for name, value in taken.items()}
    own = make_schedule(BlocksConfig(policy=policy), 50, 123)
    assert make_schedule(BlocksConfig(policy=policy, **given), 50, 123) == own


def test_the_slots_are_those_of_the_simulator():
    assert len(SLOTS) == 4
    for name, blocks, total, idle, first in SLOTS:
        policy = name.split("`")[1]
        schedule = make_schedule(BlocksConfig(policy=policy), 50, 8 * int(blocks))
        slots = count_slots(schedule, 8)
        shown = [int(cell.replace(",", "")) for cell in (total, idle, first)]
        assert shown == [slots.total_slots, slots.idle_slots, slots.first_block_slots]


def test_the_fields_of_the_simulator_s_json_are_those_it_prints():
    tables = re.findall(r"^\| in the JSON .*\n\|[-|]+\n((?:\|.*\n)+)", TEXT, re.M)
    shown = {name for row in "".join(tables).splitlines() for name in _names(row)}
    done = longreel("simulate", "--preset", "tiny", "--blocks", 4, "--stages", 2, "--json")
    assert shown | {"policy", "latents", "blocks", "tasks"} == json.loads(done.out).keys()


def _names(row):
    return re.findall(r"`(\w+)`", row.split("|")[1])
