"""`longreel doctor` says what is here, and what would run on it."""

import pytest
from command import longreel

from longreel.jobs import doctor


def test_the_doctor_says_what_would_run_and_why():
    lines = dict(line.split("  ", 1) for line in longreel("doctor").out.splitlines())
    found = {name: text.strip() for name, text in lines.items()}
    assert found["torch"][0].isdigit()
    assert found["cpu, float32, dense"].startswith("cpu-flash: ")
    assert "model.dtype" in found["cpu, bfloat16"]


@pytest.mark.parametrize(
    ("cpu", "said"),
    [
        ("flags : fpu avx512_bf16 amx_bf16 amx_tile", "set model.dtype=bfloat16"),
        ("flags : fpu avx512_bf16", "compare"),
        ("Features : fp asimd bf16", "compare"),
        ("flags : fpu avx2", "keep model.dtype=float32"),
        ("", "not known here"),
    ],
)
def test_the_doctor_knows_cpus_that_are_fast_in_bfloat16(tmp_path, monkeypatch, cpu, said):
    file = tmp_path / "cpuinfo"
    if cpu:
        file.write_text(cpu)
    monkeypatch.setattr(doctor, "_CPU", file)
    assert said in dict(doctor.describe_machine())["cpu, bfloat16"]
