"""The history of a run is the same with a crash as without one."""

import pytest

from rdtf_diffusers.training.history import RunHistory, final_losses, read_history


def figures(step: int) -> dict:
    return {"loss": 1 / step, "task": "i2v" if step % 2 else "t2v", "lr": 1e-5, "task_share/i2v": 1 / 6}


def write(path, first: int, last: int) -> None:
    """The steps after `first` up to `last`, with a validation every third step."""
    history = RunHistory(path, first)
    for step in range(first + 1, last + 1):
        history.append(step, figures(step))
        if step % 3 == 0:
            history.append(step, {"motion": {"a dog": 0.1 * step}})
    history.close()


def test_records(tmp_path):
    write(tmp_path / "history.jsonl", 0, 3)
    records = [{"step": step, **figures(step)} for step in (1, 2, 3)]
    assert read_history(tmp_path / "history.jsonl") == [*records, {"step": 3, "motion": {"a dog": 0.1 * 3}}]


@pytest.mark.parametrize("rest", ["", '{"step": 9, "lo', '{"step": 3}', "\0\0\0"])
@pytest.mark.parametrize("first", [0, 5, 6, 8])
def test_a_resumed_run_has_the_history_of_an_uninterrupted_one(tmp_path, first, rest):
    write(tmp_path / "whole", 0, 12)
    write(tmp_path / "resumed", 0, 8)
    with open(tmp_path / "resumed", "a") as file:
        file.write(rest)
    assert read_history(tmp_path / "resumed")[-1]["step"] == 8  # a line that is not whole is not read
    write(tmp_path / "resumed", first, 12)
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_line_is_there_at_once(tmp_path):
    history = RunHistory(tmp_path / "history.jsonl", 0)
    history.append(1, figures(1))
    assert len(read_history(tmp_path / "history.jsonl")) == 1
    history.close()


def test_a_history_that_was_lost_begins_anew(tmp_path):
    write(tmp_path / "history.jsonl", 7, 8)
    assert [record["step"] for record in read_history(tmp_path / "history.jsonl")] == [8]


def test_damage_is_named(tmp_path):
    (tmp_path / "history.jsonl").write_text('{"step": 1}\n\0\0\n{"step": 2}\n')
    for use in (read_history, lambda path: RunHistory(path, 2)):
        with pytest.raises(ValueError, match=r"history.jsonl: line 2 is damaged"):
            use(tmp_path / "history.jsonl")


def test_final_losses():
    records = [{"step": step, "task": "t2v" if step % 2 else "i2v", "loss": float(step)} for step in range(1, 41)]
    records += [{"step": 40, "motion": {}}]
    assert list(final_losses(records).items()) == [("i2v", 39.0), ("t2v", 38.0)]  # 37, 38, 39, 40
    assert final_losses(records, share=1.0) == {"i2v": 21.0, "t2v": 20.0}
    assert final_losses(records[:1]) == {"t2v": 1.0}
    assert final_losses([]) == final_losses(records[-1:]) == {}
