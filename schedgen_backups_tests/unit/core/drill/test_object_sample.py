"""Samples of objects: what is always in them, that they can be repeated, and what they prove."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedgen_backups.core.drill.object_sample import (
    NEWEST_COUNT,
    SampledObject,
    Stratum,
    choose_objects,
    compute_detection,
    describe_confidence,
    find_stratum,
    share_out,
)

OBJECTS = st.lists(
    st.builds(
        SampledObject,
        st.tuples(st.sampled_from("abc"), st.integers(0, 500)).map(lambda pair: f"{pair[0]}/{pair[1]}"),
        st.integers(0, 10**7),
        st.floats(0, 1e9),
    ),
    max_size=200,
    unique_by=lambda each: each.key,
)


@given(OBJECTS, st.integers(1, 250), st.text(max_size=5))
def test_a_sample_has_its_size_the_newest_objects_and_can_be_repeated(
    objects: list[SampledObject], sample_count: int, seed: str
) -> None:
    sample = choose_objects(lambda: objects, sample_count, seed)
    assert len(sample.keys) == min(sample_count, len(objects))
    assert sample.keys <= {each.key for each in objects}
    assert sample.population_count == len(objects)
    newest = sorted(objects, key=lambda each: (each.written_seconds, each.key), reverse=True)
    newest_count = min(NEWEST_COUNT, max(1, sample_count // 10), len(objects))
    assert {each.key for each in newest[:newest_count]} <= sample.keys
    assert sample.random_count == len(sample.keys) - newest_count
    assert choose_objects(lambda: objects, sample_count, seed) == sample


def test_another_seed_gives_another_sample() -> None:
    objects = [SampledObject(str(number), 1, 0.0) for number in range(1000)]
    assert choose_objects(lambda: objects, 100, "a").keys != choose_objects(lambda: objects, 100, "b").keys


def test_each_object_is_drawn_equally_often() -> None:
    objects = [SampledObject(str(number), 1, 0.0) for number in range(20)]
    drawn = [choose_objects(lambda: objects, 5, str(seed)).keys for seed in range(2000)]
    counts = sorted(sum(str(number) in keys for keys in drawn) for number in range(20))
    # One is the newest by its key, and 4 of the other 19 are drawn: 421 times each; 5 standard deviations.
    assert counts[-1] == 2000
    assert all(330 < number < 512 for number in counts[:-1])


def test_a_rare_kind_of_object_is_drawn_too() -> None:
    common = [SampledObject(f"pdfs/{number}", 40_000, 0.0) for number in range(5000)]
    rare = [SampledObject("video/1", 2_000_000_000, -1.0), SampledObject("root", 0, -1.0)]
    keys = choose_objects(lambda: [*rare, *common], 50, "seed").keys
    assert {"video/1", "root"} <= keys


def test_strata_are_the_first_part_of_the_key_and_the_power_of_ten() -> None:
    assert find_stratum("uploads/2026/1.pdf", 99_999) == Stratum("uploads", 4)
    assert find_stratum("uploads/2026/1.pdf", 100_000) == Stratum("uploads", 5)
    assert find_stratum("1.pdf", 0) == Stratum("", -1)


@given(
    st.dictionaries(
        st.builds(Stratum, st.text(max_size=2), st.integers(-1, 9)), st.integers(1, 500), max_size=20
    ),
    st.integers(0, 3000),
)
def test_shares_add_up_and_fit(sizes: dict[Stratum, int], total: int) -> None:
    shares = share_out(sizes, total)
    assert sum(shares.values()) == min(total, sum(sizes.values()))
    assert all(0 <= shares[name] <= size for name, size in sizes.items())
    if total >= len(sizes):
        assert all(shares.values())


@given(st.data(), st.integers(1, 300))
def test_the_probability_is_the_hypergeometric_one(data: st.DataObject, population: int) -> None:
    """Written with whole numbers, unlike the code."""
    lost, sample = data.draw(st.integers(1, population)), data.draw(st.integers(1, population))
    missed = Fraction(comb(population - lost, sample), comb(population, sample))
    assert compute_detection(population, lost, sample) == pytest.approx(float(1 - missed), abs=1e-9)


def test_a_small_part_of_many_objects_is_found_as_often_as_with_replacement() -> None:
    assert compute_detection(10_000_000, 10_000, 4603) == pytest.approx(1 - 0.999**4603, abs=1e-4)


@pytest.mark.parametrize(
    ("population", "sample", "words"),
    [
        (
            10_000_000,
            4610,
            "a random loss of 0.1 % of the objects (10000 of 10000000) would be found with 99 %",
        ),
        (
            10_000_000,
            3000,
            "a random loss of 0.1 % of the objects (10000 of 10000000) would be found with 95 %",
        ),
        (
            10_000_000,
            2900,
            "a random loss of 1 % of the objects (100000 of 10000000) would be found with 99 %",
        ),
        (
            10_000_000,
            20,
            "a random loss of 10 % of the objects (1000000 of 10000000) would be found with 87 %",
        ),
        (1000, 999, "a random loss of 0.1 % of the objects (1 of 1000) would be found with 99 %"),
        (5, 4, "a random loss of 20 % of the objects (1 of 5) would be found with 80 %"),
        (1000, 0, "a random loss of 10 % of the objects (100 of 1000) would be found with 0 %"),
        (1000, 1000, "every object was compared"),
    ],
)
def test_confidence_in_words(population: int, sample: int, words: str) -> None:
    assert describe_confidence(population, sample) == words
