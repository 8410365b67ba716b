"""What is kept between requests."""

from __future__ import annotations

import pytest

from edgellm.server.kept import Kept
from edgellm.server.problems import ApiProblem


def test_each_thing_is_its_owners_alone() -> None:
    kept: Kept[str] = Kept("file", "file-", 10)
    name = kept.new_name()
    kept.put(name, "ann", "hers")
    assert kept.get(name, "ann") == "hers"
    for work in (kept.get, kept.drop):
        with pytest.raises(ApiProblem) as of_another:
            work(name, "bob")
        with pytest.raises(ApiProblem) as of_nobody:
            work("file-" + "0" * 40, "bob")
        assert of_another.value.message.replace(name, "") == of_nobody.value.message.replace("file-" + "0" * 40, "")
    assert (kept.of("ann"), kept.of("bob")) == (["hers"], [])
    assert kept.drop(name, "ann") == "hers" and kept.all() == []


def test_the_oldest_go_first_by_number_and_by_size() -> None:
    kept: Kept[int] = Kept("thing", "t", 3, most_bytes=100)
    for i in range(5):
        kept.put(str(i), "ann", i, 10)
    assert kept.of("ann") == [4, 3, 2]
    kept.put("large", "ann", 5, 85)
    assert kept.of("ann") == [5, 4]
    kept.drop("large", "ann")
    kept.put("6", "ann", 6, 90)
    assert kept.of("ann") == [6, 4]


def test_names_cannot_be_guessed() -> None:
    kept: Kept[int] = Kept("thing", "t", 3)
    names = {kept.new_name() for _ in range(1000)}
    assert len(names) == 1000 and min(map(len, names)) >= 32
