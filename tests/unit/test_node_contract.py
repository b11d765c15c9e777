"""Graphs that users have saved keep working: ids, inputs, their order and defaults, outputs; ours are only appended."""

import ast
import inspect
import json
import textwrap
from pathlib import Path

import pytest
from support.pack import load_pack

CONTRACT = json.loads((Path(__file__).parent / "data" / "node_contract.json").read_text(encoding="utf-8"))
NODES = load_pack().NODE_CLASS_MAPPINGS
# What a new node starts with where what users know cuts their speech; saved graphs have a value of their own.
OTHER_DEFAULTS = {("MultiTalkWav2VecEmbeds", "num_frames"): 0}
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def kind_of(spec):
    """The type of an input; of several that it takes, the first, which saved graphs have."""
    return "COMBO" if isinstance(spec[0], list) else spec[0].split(",")[0]


@pytest.mark.parametrize("name", CONTRACT)
def test_inputs_come_in_the_order_of_saved_graphs(name):
    types = NODES[name].INPUT_TYPES()
    for group in ("required", "optional"):
        wanted = [(item, kind) for item, kind, _, where in CONTRACT[name]["inputs"] if where == group]
        ours = [(item, kind_of(spec)) for item, spec in types.get(group, {}).items()]
        assert ours[: len(wanted)] == wanted
        if group == "required":
            assert len(ours) == len(wanted), "a new required input breaks every saved graph"


@pytest.mark.parametrize("name", CONTRACT)
def test_widgets_start_with_what_users_know(name):
    specs = NODES[name].INPUT_TYPES()
    for item, kind, default, group in CONTRACT[name]["inputs"]:
        if kind in WIDGETS and default is not None:
            assert specs[group][item][1]["default"] == OTHER_DEFAULTS.get((name, item), default), item


@pytest.mark.parametrize("name", CONTRACT)
def test_outputs_stay(name):
    node = NODES[name]
    kinds = ["COMBO" if isinstance(kind, list) else kind for kind in node.RETURN_TYPES]
    wanted = [[kind.split("[")[0], item] for kind, item in CONTRACT[name]["outputs"]]
    assert [list(pair) for pair in zip(kinds, node.RETURN_NAMES, strict=True)][: len(wanted)] == wanted


@pytest.mark.parametrize("name", NODES)
def test_a_node_can_be_called_with_what_its_schema_says(name):
    node = NODES[name]
    types = node.INPUT_TYPES()
    parameters = inspect.signature(getattr(node, node.FUNCTION)).parameters
    for item in types["required"]:
        assert item in parameters
    for item in (*types["optional"], *types["hidden"]):
        assert parameters[item].default is not inspect.Parameter.empty
    for item, spec in (types["required"] | types["optional"]).items():
        default, kind = parameters[item].default, kind_of(spec)
        if kind in WIDGETS and default is not inspect.Parameter.empty:
            assert default == spec[1].get("default", default), f"{item}: {default} in Python"
        if kind in ("INT", "FLOAT"):
            assert {"min", "max", "step"} <= set(spec[1]) or item == "seed"


def refused_inputs(node):
    """Names of the inputs that a node's code hands to `refuse`."""
    calls = (
        call for call in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(node)))) if isinstance(call, ast.Call)
    )
    refusals = (call for call in calls if getattr(call.func, "id", "") in ("refuse", "_refuse_unless_off"))
    return {keyword.arg for call in refusals for keyword in call.keywords}


def test_what_is_always_refused_is_out_of_sight():
    count = 0
    for name, node in NODES.items():
        if node.__module__.endswith("nodes_refused"):  # made by a function, without inputs
            continue
        types = node.INPUT_TYPES()
        inputs = types["required"] | types["optional"]
        for item in refused_inputs(node) & set(inputs):
            assert inputs[item][1].get("advanced" if kind_of(inputs[item]) in WIDGETS else "unsupported"), (
                f"{name}.{item}"
            )
            count += 1
    assert count > 30


def test_a_call_without_comfyui_says_what_is_missing():
    loader = NODES["WanVideoVAELoader"]()
    with pytest.raises(ValueError, match="Wan2_1_VAE.safetensors is missing(?s:.)*https://"):
        loader.loadmodel("wanvideo\\Wan2_1_VAE.safetensors")
