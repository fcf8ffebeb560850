"""A run's spec: as a link and back, complete, and what a viewer may not ask for."""

from __future__ import annotations

import pytest

from inferencegym.ground.errors import ConfigError
from inferencegym.web.spec import Spec, complete, run_id


def _named(spec):
    whole, task = complete(spec)
    return whole, task.digest


def test_a_link_reads_as_people_write_it():
    assert Spec("hard", ("sieve", "lru"), "validation", 0, {"gpu_blocks": 5000}).query() == "task=hard&policies=sieve,lru&split=validation&seed=0&set.gpu_blocks=5000"  # fmt: skip


def test_what_equals_the_task_is_no_override_and_the_same_run():
    plain, same = _named(Spec("hard", ("lru",))), _named(Spec("hard", ("lru",), overrides={"gpu_blocks": 10_000}))
    assert plain == same
    assert run_id(*plain) != run_id(*_named(Spec("hard", ("lru",), overrides={"gpu_blocks": 9999})))
    assert run_id(*plain) != run_id(*_named(Spec("hard", ("lru",), seed=1)))
    assert run_id(*plain) != run_id(*_named(Spec("hard", ("lru", "sieve"))))


@pytest.mark.parametrize(
    ("spec", "field", "allowed"),
    [
        (Spec("nope", ("lru",)), "task", "hard"),
        (Spec("/etc/passwd.toml", ("lru",)), "task", "hard"),
        (Spec("hard", ()), "policies", "1 to 6"),
        (Spec("hard", tuple("abcdefg")), "policies", "1 to 6"),
        (Spec("hard", ("lru", "lru")), "policies", "each once"),
        (Spec("hard", ("aimd",)), "policies", "sieve"),
        (Spec("hard", ("os:system",)), "policies", "sieve"),
        (Spec("hard", ("llm:gpt,url=http://169.254.169.254/",)), "policies", "sieve"),
        (Spec("hard", ("file:/etc/passwd",)), "policies", "sieve"),
        (Spec("hard", ("/tmp/own.npz",)), "policies", "sieve"),
        (Spec("hard", ("fixed:dance",)), "policies", "admit_free"),
        (Spec("hard", ("fixed:" + "9" * 300,)), "policies", "sieve"),
        (Spec("hard", ("lru",), "nope"), "split", "train, validation, test"),
        (Spec("hard", ("lru",), seed=-1), "seed", "0.."),
        (Spec("hard", ("lru",), seed=1 << 41), "seed", "0.."),
        (Spec("hard", ("lru",), overrides={"gpu_blocks": 1}), "gpu_blocks", "500..100000"),
        (Spec("hard", ("lru",), overrides={"gpu": "h100"}), "gpu", "gpu_blocks"),
        (Spec("hard", ("lru",), overrides={"gpu_blocks": 10**400}), "gpu_blocks", "500..100000"),
        (Spec("hard", ("lru",), overrides={"gpu_blocks": "9" * 99_999}), "gpu_blocks", "500..100000"),
        (Spec("hard", ("lru",), overrides={"block_tokens": "9" * 99_999}), "block_tokens", "16"),
        (Spec("hard", ("lru",), overrides={"9" * 99_999: 1}), "9" * 80, "gpu_blocks"),
    ],
)
def test_what_cannot_or_may_not_be_played_is_refused_at_its_field(spec, field, allowed):
    with pytest.raises(ConfigError) as error:
        complete(spec)
    assert error.value.field == field
    assert allowed in error.value.allowed
    assert len(str(error.value)) < 1000, "it repeats what was sent"
