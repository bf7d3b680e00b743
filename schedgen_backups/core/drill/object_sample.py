"""Choose which objects a drill restores if it does not restore all, and say what their equality proves.

Pure functions of keys, sizes and times. `drill` restores the chosen objects and records the results.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from schedgen_backups.core.units import count

NEWEST_COUNT = 10
"""Number of the most recently written objects, which each sample contains: a fault of today shows there."""
_SHARES = (0.0001, 0.001, 0.01, 0.1)
_CONFIDENT = 0.95
"""The usual level of confidence; the words give the probability itself."""
_TEN = 10


class SampledObject(NamedTuple):
    """What the choice depends on."""

    key: str
    size_bytes: int
    written_seconds: float
    """When it was last modified, in seconds since 1970."""


class Stratum(NamedTuple):
    """Objects that are alike: the same first part of the key, sizes within a factor of ten."""

    prefix: str
    size_class: int


@dataclass(frozen=True)
class ObjectSample:
    """The chosen objects."""

    keys: frozenset[str]
    population_count: int
    """Number of the objects for which they stand."""
    random_count: int
    """Number of those that were drawn at random."""
    seed: str
    noun: str = "object"
    """What the population consists of."""


def find_stratum(key: str, size_bytes: int) -> Stratum:
    """Return the stratum of an object."""
    prefix = key.partition("/")[0] if "/" in key else ""
    return Stratum(prefix, int(math.log10(size_bytes)) if size_bytes else -1)


def share_out(sizes: Mapping[Stratum, int], total: int) -> dict[Stratum, int]:
    """Return how many objects of each stratum are drawn: in proportion, by the largest remainders.

    A small stratum gets one object as long as there is one for each: a rare kind of object is drawn, too.
    """
    population = sum(sizes.values())
    total = min(total, population)
    if not total:
        return dict.fromkeys(sizes, 0)
    least = 1 if total >= len(sizes) else 0
    spare, rest = total - least * len(sizes), population - least * len(sizes)
    quotas = {name: spare * (size - least) / rest if rest else 0.0 for name, size in sizes.items()}
    shares = {name: least + int(quota) for name, quota in quotas.items()}
    missing = total - sum(shares.values())
    by_remainder = sorted(sizes, key=lambda name: (int(quotas[name]) - quotas[name], name))
    for name in [name for name in by_remainder if shares[name] < sizes[name]][:missing]:
        shares[name] += 1
    return shares


def choose_objects(read: Callable[[], Iterable[SampledObject]], sample_count: int, seed: str) -> ObjectSample:
    """Return a sample of this many objects: the newest ones, and others at random by stratum.

    `read` is called twice, so that the objects need not be in memory. The same seed and objects give the same
    sample.
    """
    newest_count = min(NEWEST_COUNT, max(1, sample_count // _TEN))
    newest: list[tuple[float, str]] = []
    sizes: Counter[Stratum] = Counter()
    newest_strata: dict[str, Stratum] = {}
    for each in read():
        stratum = find_stratum(each.key, each.size_bytes)
        sizes[stratum] += 1
        item = (each.written_seconds, each.key)
        if len(newest) < newest_count:
            heapq.heappush(newest, item)
        elif item > newest[0]:
            newest_strata.pop(heapq.heapreplace(newest, item)[1], None)
        else:
            continue
        newest_strata[each.key] = stratum
    population_count = sum(sizes.values())
    for stratum in newest_strata.values():
        sizes[stratum] -= 1
    remaining = {name: size for name, size in sizes.items() if size}
    shares = share_out(remaining, max(0, sample_count - len(newest)))
    random = Random(seed)  # noqa: S311 - a sample
    drawn: dict[Stratum, list[str]] = {name: [] for name in shares}
    seen: Counter[Stratum] = Counter()
    for each in read():
        stratum = find_stratum(each.key, each.size_bytes)
        if each.key in newest_strata or not shares.get(stratum):
            continue
        # Reservoir sampling, algorithm R (Knuth, TAOCP 3.4.2).
        seen[stratum] += 1
        if len(drawn[stratum]) < shares[stratum]:
            drawn[stratum].append(each.key)
        elif (place := random.randrange(seen[stratum])) < shares[stratum]:
            drawn[stratum][place] = each.key
    chosen = frozenset(key for keys in drawn.values() for key in keys)
    return ObjectSample(chosen | newest_strata.keys(), population_count, len(chosen), seed)


def compute_detection(population_count: int, lost_count: int, sample_count: int) -> float:
    """Return the probability that a sample contains at least one of the lost objects (hypergeometric).

    For a small part of a large population it is 1-(1-p)^n.
    """
    if not lost_count or not sample_count:
        return 0.0
    if lost_count + sample_count > population_count:
        return 1.0
    kept = population_count - lost_count
    log_missed = (
        math.lgamma(kept + 1)
        - math.lgamma(kept - sample_count + 1)
        - math.lgamma(population_count + 1)
        + math.lgamma(population_count - sample_count + 1)
    )
    return -math.expm1(min(0.0, log_missed))


def describe_confidence(population_count: int, sample_count: int, noun: str = "object") -> str:
    """Return which random loss a sample of this size would find, and with what probability.

    The smallest loss that is found with 95 % or more; otherwise a loss of a tenth. Probabilities are rounded
    down.
    """
    if sample_count >= population_count:
        return f"every {noun} was compared"
    losses = [int(share * population_count) for share in _SHARES if share * population_count >= 1] or [1]
    lost_count, probability = losses[0], 0.0
    for lost_count in losses:
        probability = compute_detection(population_count, lost_count, sample_count)
        if probability >= _CONFIDENT:
            break
    percent = min(99, int(probability * 100))
    return (
        f"a random loss of {100 * lost_count / population_count:.2g} % of the {noun}s ({lost_count} of "
        f"{population_count}) would be found with {percent} %"
    )


def describe_sample(sample: ObjectSample, restored_count: int) -> str:
    """Return what was restored, and what follows for the objects that were not."""
    return (
        f"a sample of {count(restored_count, 'object')}, drawn from {sample.population_count} {sample.noun}s "
        f"(seed {sample.seed}): "
        f"{describe_confidence(sample.population_count, sample.random_count, sample.noun)}"
    )
