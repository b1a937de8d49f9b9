import json
import pickle

import pytest

from rayreid.storage.roles import Role


@pytest.mark.parametrize(
    ("kind", "target", "text"),
    [("weights", "", "weights"), ("target", "market", "target.market"), ("target_proxy", "a_1", "target_proxy.a_1")],
)
def test_a_role_is_its_text_and_is_read_from_it(kind, target, text):
    for role in (Role.of(kind, target), Role(text), pickle.loads(pickle.dumps(Role(text)))):
        assert (role.kind, role.target, type(role)) == (kind, target, Role)
        assert role == text and {text: 1}[role] == 1
        assert json.dumps({role: 0}) == json.dumps({text: 0}) and f"run.{role}" == f"run.{text}"


def test_a_kind_that_begins_alike_is_another():
    assert Role("target_proxy.market").kind != Role("target.market").kind
