"""`ctx.config`: a real dict, with attributes."""

import copy
import json
import logging.config
import pickle

import pytest

from mlxjobs import ConfigDict


def test_items_are_attributes_at_every_depth() -> None:
    config = ConfigDict({"model": {"layers": [{"units": 3}]}})
    assert config.model.layers[0].units == 3
    config.model.lr = {"start": 0.1}
    config["new"] = [{"a": 1}]
    assert config.model.lr.start == 0.1
    assert config.new[0].a == 1


def test_it_is_a_dict_wherever_one_is_asked_for() -> None:
    config = ConfigDict({"model": {"a": 1, "b": 2}})
    assert isinstance(config.model, dict)
    assert {**config.model} == {"a": 1, "b": 2}
    assert json.loads(json.dumps(config)) == {"model": {"a": 1, "b": 2}}
    logging.config.dictConfig(ConfigDict({"version": 1, "disable_existing_loggers": False, "handlers": {}}))


def test_copies_keep_attribute_access_and_are_as_deep_as_asked() -> None:
    config = ConfigDict({"a": {"b": [1]}})
    for same in (copy.copy(config), config.copy(), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert same == config
        assert type(same.a) is ConfigDict
    deep = copy.deepcopy(config)
    deep.a.b.append(2)
    assert config.a.b == [1]


def test_a_config_that_holds_itself_can_be_copied() -> None:
    config = ConfigDict()
    config["self"] = config
    assert copy.deepcopy(config)["self"]["self"] is not config


def test_a_missing_key_names_the_nearest() -> None:
    with pytest.raises(AttributeError, match="did you mean 'optimizer'"):
        _ = ConfigDict({"optimizer": {}}).optimiser
    assert not hasattr(ConfigDict(), "anything")


def test_to_dict_gives_plain_dictionaries() -> None:
    plain = ConfigDict({"a": {"b": [{"c": 1}]}}).to_dict()
    assert type(plain["a"]) is dict
    assert type(plain["a"]["b"][0]) is dict


def test_every_way_of_setting_converts() -> None:
    config = ConfigDict({"kept": 1}, made={"x": 1})
    config.update({"a": {"x": 1}}, b={"x": 1})
    config |= {"c": {"x": 1}}
    config.setdefault("d", {"x": 1})
    assert all(config[key].x == 1 for key in ("made", "a", "b", "c", "d"))
    assert (config | {"e": {"x": 1}}).e.x == 1
    del config.a
    assert "a" not in config
