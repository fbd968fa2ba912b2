"""Curricula against the printed family probabilities and a hand-written PID controller."""

import json
import math
from collections import Counter

import pytest

from rdtf_diffusers.training import FAMILIES, TASKS, make_curriculum


KINDS = ("uniform", "linear", "adaptive")
UNIFORM = dict.fromkeys(TASKS, 1 / 6)


def family_probabilities(curriculum) -> list[float]:
    probabilities = curriculum.probabilities()
    assert list(probabilities) == list(TASKS)
    assert sum(probabilities.values()) == pytest.approx(1.0)
    for tasks in FAMILIES.values():
        assert len({probabilities[task] for task in tasks}) == 1  # within a family all tasks are alike
    return [round(sum(probabilities[task] for task in tasks), 3) for tasks in FAMILIES.values()]


def advance(curriculum, losses):
    for loss in losses:
        curriculum.update(loss)
    return curriculum


def wavy_losses(count: int) -> list[float]:
    return [1.0 / (1 + 0.01 * t) + 0.3 * math.sin(1.7 * t) + 0.1 * math.sin(0.37 * t * t) for t in range(count)]


# For the adaptive kind fewer than 10 signals give the level round(4 r): r = 0, 0.5, 1 are the levels 0, 2, 4.
@pytest.mark.parametrize(
    ("kind", "step", "expected"),
    [
        ("adaptive", 0, [0.125, 0.375, 0.500]),
        ("adaptive", 4, [0.500, 0.167, 0.333]),
        ("adaptive", 8, [0.750, 0.028, 0.222]),
        ("linear", 0, [0.115, 0.346, 0.538]),
        ("linear", 4, [0.500, 0.167, 0.333]),
        ("linear", 8, [0.794, 0.029, 0.176]),
        ("uniform", 0, [0.500, 0.167, 0.333]),
        ("uniform", 8, [0.500, 0.167, 0.333]),
    ],
)
def test_family_probabilities_at_the_printed_points(kind, step, expected):
    assert family_probabilities(advance(make_curriculum(kind, total_steps=8), [1.0] * step)) == expected


def test_progress_stops_at_the_end_of_the_run():
    curriculum = advance(make_curriculum("linear", total_steps=8), [1.0] * 8)
    at_end = curriculum.probabilities()
    assert advance(curriculum, [1.0] * 5).probabilities() == at_end
    assert curriculum.step == 13


@pytest.mark.parametrize(
    ("level", "weights"),
    [(0, (0.1, 0.9, 0.5)), (1, (0.3, 0.7, 0.5)), (2, (0.5, 0.5, 0.5)), (3, (0.7, 0.3, 0.5)), (4, (0.9, 0.1, 0.5))],
)
def test_each_level_adds_its_weights_to_the_static_part(level, weights):
    curriculum = make_curriculum("adaptive", total_steps=100)
    signals = [2.0] * (2 * level) + [0.0] * (9 - 2 * level) + [1.0]  # 2 * level of 10 values are above the last
    curriculum.load_state_dict({"kind": "adaptive", "step": 25, "losses": [1.0] * 10, "signals": signals})
    assert curriculum.level == level
    static = (0.1 + 0.8 * 0.25, 0.9 - 0.8 * 0.25, 0.7 - 0.4 * 0.25)
    total = [a + b for a, b in zip(static, weights, strict=True)]
    total_sum = 3 * total[0] + total[1] + 2 * total[2]
    expected = dict(zip(FAMILIES, total, strict=True))
    for name, probability in curriculum.probabilities().items():
        assert probability == pytest.approx(expected[TASKS[name].family] / total_sum)


def test_terms_against_numbers_worked_out_by_hand():
    curriculum = make_curriculum("adaptive", total_steps=100)
    assert curriculum.terms == (0.0, 0.0, 0.0)
    curriculum.update(0.8)
    assert curriculum.terms == pytest.approx((4.0, 2.4, 0.0))
    curriculum.update(0.4)  # mean 0.6, difference -0.4
    assert curriculum.terms == pytest.approx((2.0, 1.8, -0.52))
    curriculum.update(0.6)  # mean 0.6, difference 0.2
    assert curriculum.terms == pytest.approx((3.0, 1.8, 0.26))
    assert curriculum.terms.proportional == pytest.approx(3.0)
    assert list(curriculum.signals) == pytest.approx([6.4, 3.28, 5.06])


def test_terms_with_other_coefficients():
    curriculum = advance(make_curriculum("adaptive", total_steps=100, pid=(1.0, 10.0, 100.0)), [0.5, 0.7])
    assert curriculum.terms == pytest.approx((0.7, 6.0, 20.0))


def test_signals_and_levels_follow_a_slow_controller_past_the_history_cap():
    losses = wavy_losses(1100)
    curriculum = make_curriculum("adaptive", total_steps=1100)
    signals, levels = [], set()
    for t, loss in enumerate(losses):
        curriculum.update(loss)
        recent = losses[max(0, t - 999) : t + 1]
        change = losses[t] - losses[t - 1] if t > 0 else 0.0
        signals.append(5.0 * loss + 3.0 * sum(recent) / len(recent) + 1.3 * change)
        assert curriculum.signals[-1] == pytest.approx(signals[-1])
        kept = signals[-1000:]
        if len(kept) < 10:
            level = round(4 * min((t + 1) / 1100, 1))
        else:
            level = min(4, math.floor(5 * sum(signal > signals[-1] for signal in kept) / len(kept)))
        assert curriculum.level == level, t
        levels.add(level)
    assert levels == {0, 1, 2, 3, 4}
    assert len(curriculum.losses) == len(curriculum.signals) == 1000


def test_level_follows_the_step_until_there_are_ten_signals():
    falling = [1.0 - 0.05 * t for t in range(10)]
    curriculum = advance(make_curriculum("adaptive", total_steps=1000), falling[:9])
    assert curriculum.level == 0  # r is about 0, although the last signal is the lowest
    curriculum.update(falling[9])
    assert curriculum.level == 4  # nine of ten signals are higher
    late = advance(make_curriculum("adaptive", total_steps=14), falling[:9])
    assert late.level == 3  # round(4 * 9 / 14) = round(2.57)


def test_a_rising_loss_gives_the_easiest_level():
    assert advance(make_curriculum("adaptive", total_steps=10), [0.1 * t for t in range(1, 41)]).level == 0


@pytest.mark.parametrize(
    ("signals", "level"),
    [
        ([1.0] * 10, 0),  # equal values are not above
        ([1.0] * 8 + [2.0, 1.0], 0),  # q = 0.1
        ([1.0] * 7 + [2.0, 2.0, 1.0], 1),  # q = 0.2, exactly on the border
        ([2.0] * 3 + [1.0] * 7, 1),  # q = 0.3
        ([2.0] * 6 + [1.0] * 4, 3),  # q = 0.6, exactly on the border
        ([0.0] * 4 + [2.0] * 5 + [1.0], 2),  # q = 0.5
    ],
)
def test_level_with_ties_and_borders(signals, level):
    curriculum = make_curriculum("adaptive", total_steps=100)
    curriculum.load_state_dict({"kind": "adaptive", "step": 10, "losses": [1.0] * 10, "signals": signals})
    assert curriculum.level == level


@pytest.mark.parametrize("kind", KINDS)
def test_draws_come_as_often_as_the_probabilities_say_and_from_the_seed_alone(kind):
    curriculum = advance(make_curriculum(kind, total_steps=100), [1.0] * 5)
    other_rank = advance(make_curriculum(kind, total_steps=100), [1.0] * 5)
    count = 6000
    drawn = [curriculum.draw(seed) for seed in range(count)]
    assert drawn == [other_rank.draw(seed) for seed in range(count)]
    for task, probability in curriculum.probabilities().items():
        deviation = math.sqrt(count * probability * (1 - probability))
        assert abs(Counter(drawn)[task] - count * probability) <= 4 * deviation, task


def resumed(curriculum, kind: str, **changes):
    state = json.loads(json.dumps(curriculum.state_dict())) | changes
    copy = make_curriculum(kind, curriculum.total_steps)
    copy.load_state_dict(state)
    return copy


def continuation(curriculum, losses) -> list:
    record = []
    for loss in losses:
        record.append((curriculum.step, curriculum.draw(curriculum.step), curriculum.probabilities()))
        curriculum.update(loss)
    return record


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_continues_exactly(kind):
    losses = wavy_losses(1250)
    curriculum = advance(make_curriculum(kind, total_steps=1300), losses[:1200])
    copy = resumed(curriculum, kind)
    expected = continuation(curriculum, losses[1200:])
    assert continuation(copy, losses[1200:]) == expected
    assert copy.state_dict() == curriculum.state_dict()


@pytest.mark.parametrize("history", ["losses", "signals"])
def test_a_resume_needs_both_histories(history):
    losses = wavy_losses(350)
    curriculum = advance(make_curriculum("adaptive", total_steps=400), losses[:300])
    forgetful = resumed(curriculum, "adaptive", **{history: []})
    assert continuation(forgetful, losses[300:]) != continuation(curriculum, losses[300:])


def test_a_saved_state_does_not_change_afterwards():
    curriculum = advance(make_curriculum("adaptive", total_steps=10), [1.0, 2.0])
    state = curriculum.state_dict()
    curriculum.update(3.0)
    assert state["losses"] == [1.0, 2.0] and state["step"] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_task_weights_multiply(kind):
    plain = make_curriculum(kind, total_steps=10).probabilities()
    weighted = make_curriculum(kind, total_steps=10, task_weights={"t2v": 0, "i2v": 3}).probabilities()
    assert weighted["t2v"] == 0.0
    assert weighted["i2v"] / weighted["it2v"] == pytest.approx(3 * plain["i2v"] / plain["it2v"])
    assert weighted["pre_prediction"] / weighted["it2v"] == pytest.approx(plain["pre_prediction"] / plain["it2v"])
    assert sum(weighted.values()) == pytest.approx(1.0)


def test_uniform_is_uniform_over_tasks():
    assert advance(make_curriculum("uniform", total_steps=10), [1.0] * 3).probabilities() == pytest.approx(UNIFORM)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "cosine"}, "`kind` must be .* got 'cosine'"),
        ({"total_steps": 0}, "`total_steps` must be at least 1, got 0"),
        ({"task_weights": {"v2v": 1.0}}, "`task_weights` names .*v2v"),
        ({"task_weights": {"i2v": -1.0}}, "`task_weights` must be finite and not negative"),
        ({"task_weights": {"i2v": math.nan}}, "`task_weights` must be finite and not negative"),
        ({"task_weights": dict.fromkeys(TASKS, 0.0)}, "`task_weights` must leave at least one task"),
    ],
)
def test_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_curriculum(**({"kind": "adaptive", "total_steps": 10} | arguments))


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_refuses_a_loss_that_is_not_finite_and_keeps_its_state(loss):
    curriculum = advance(make_curriculum("adaptive", total_steps=10), [1.0, 0.5])
    before = curriculum.state_dict()
    with pytest.raises(ValueError, match=r"`loss` must be finite.*after 2 steps"):
        curriculum.update(loss)
    assert curriculum.state_dict() == before


def test_refuses_the_state_of_another_kind():
    state = make_curriculum("linear", total_steps=10).state_dict()
    with pytest.raises(ValueError, match="kind 'adaptive', got 'linear'"):
        make_curriculum("adaptive", total_steps=10).load_state_dict(state)
