"""Only a variable meant for a service's key is read from the environment."""

import pytest

from firered_lit.config.api_keys import is_key_variable, read_key
from firered_lit.config.build import problems
from firered_lit.config.recipe import Recipe
from firered_lit.errors import UserError

SECRETS = [
    "AWS_SECRET_ACCESS_KEY",
    "HF_TOKEN",
    "HOME",
    "_API_KEY",
    "API_KEY",
    "A_API_KEY_ID",
    "a b_API_KEY",
    "A_API_KEY\n",
    "",
]


@pytest.mark.parametrize("name", SECRETS)
def test_a_variable_that_is_not_named_as_a_key_is_never_read(monkeypatch, name):
    monkeypatch.setattr("os.environ", Unread())
    assert not is_key_variable(name)
    with pytest.raises(UserError, match="ends in _API_KEY"):
        read_key(name)
    recipe = Recipe(
        "r.yaml", {"_target_": "callbacks.judge.server.Server", "url": "x", "model": "m", "key_variable": name}
    )
    assert [str(problem) for problem in problems(recipe)] == [
        f"r.yaml: key_variable: expected the name of an environment variable that ends in _API_KEY, got {name!r}"
    ]


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "my_API_KEY", "JUDGE2_API_KEY"])
def test_a_key_is_read_from_its_variable(monkeypatch, name):
    monkeypatch.delenv(name, raising=False)
    assert read_key(name) is None
    monkeypatch.setenv(name, "secret")
    assert read_key(name) == "secret"
    recipe = Recipe(
        "r.yaml", {"_target_": "callbacks.judge.server.Server", "url": "x", "model": "m", "key_variable": name}
    )
    assert list(problems(recipe)) == []


class Unread(dict):
    """An environment that fails when it is read."""

    def get(self, *_):
        raise AssertionError("the environment was read")

    __getitem__ = get
