"""Run as a script, in a process of its own that TensorRT-RTX may take down: builds a graph for a named chip and says what came.

GRAPH PRECISION SM -> one line of JSON: library, plan bytes, timing bytes, inputs, layers of the network as [name, kind, input
types, output types], layers of the built engine as [name, kind, input types, output types], phases of the build; or error.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from encoders.engine.build import BuildError, build, configure, library_of, load_library, logger, parse
from encoders.engine.plans import Recipe
from encoders.tensorrt_backend import FUSED

TYPE = re.compile(r"Datatype: (\w+)")


def layers(network: Any) -> list[Any]:
    out = []
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        ins = [layer.get_input(k) for k in range(layer.num_inputs)]
        outs = [layer.get_output(k) for k in range(layer.num_outputs)]
        out.append([layer.name, layer.type.name, [t.dtype.name for t in ins if t], [t.dtype.name for t in outs]])
    return out


def built(messages: list[str]) -> list[Any]:
    """From what the library logs when it is done, the only place that says it without a GPU."""
    out = []
    for line in "\n".join(messages).splitlines():
        found = re.match(
            r"Name: (.*?), LayerType: (\w+), Inputs: \[(.*?)\], Constants: .*?, Outputs: \[(.*?)\], TacticName", line
        )
        if found:
            name, kind, ins, outs = found.groups()
            out.append([name, kind, TYPE.findall(ins), TYPE.findall(outs)])
    return out


def main(path: str, precision: str, sm: str) -> dict[str, Any]:
    trt, graph, messages, phases = load_library(), Path(path).read_bytes(), list[str](), set[str]()
    recipe = Recipe(precision=precision, ranges=FUSED)  # type: ignore[arg-type]
    try:
        builder, network, held = parse(trt, graph, recipe, logger(trt))
        config = configure(trt, builder, network, recipe, sm)
        ins = [network.get_input(i) for i in range(network.num_inputs)]
        inputs = {t.name: [t.dtype.name, *t.shape] for t in ins}
        plan, timings = build(
            trt,
            graph,
            recipe,
            sm,
            advance=lambda phase, done, total: phases.add(phase),
            say=lambda s, text: messages.append(text),
        )
    except BuildError as error:
        return {"error": str(error)}
    told = {"library": library_of(trt), "plan": len(plan), "timings": len(timings), "inputs": inputs, "phases": sorted(phases)}
    return told | {
        "network": layers(network),
        "engine": built(messages),
        "held": len(held),
        "tf32": config.get_flag(trt.BuilderFlag.TF32),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
