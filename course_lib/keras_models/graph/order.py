"""The order in which a functional model of Keras runs its calls.

It matters only where a call changes what later calls see: MultiHeadAttention takes the
masks off its inputs, a batch norm moves its statistics. Source: map_graph and
_build_map in keras/src/ops/function.py at v3.15.1, and _map_graph_network in
keras/engine/functional.py at v2.15.0.
"""

from course_lib.keras_models.spec import CallSpec, ModelSpec

Node = tuple[str, int]  # a layer and the number of its call


def in_run_order(spec: ModelSpec) -> list[CallSpec]:
    """Return the calls from the deepest to the outputs.

    A call's depth is the longest way to an output, and all calls of a layer are at
    least as deep as its deepest one that was met before; equal depths keep the order
    of a walk from the outputs.
    """
    calls = {(call.layer, call.number): call for call in spec.calls}
    parents = {node: call.parents for node, call in calls.items()}
    visited = _from_inputs(spec, parents)
    depths: dict[Node, int] = {}
    of_layer: dict[str, int] = {}
    for node in reversed(visited):
        depth = max(depths.setdefault(node, 0), of_layer.get(node[0], 0))
        of_layer[node[0]] = depths[node] = depth
        for parent in parents.get(node, ()):
            depths[parent] = max(depth + 1, depths.get(parent, 0))
    found = sorted(depths, key=lambda node: -depths[node])
    rest = [call for node, call in calls.items() if node not in depths]
    return [*(calls[node] for node in found if node in calls), *rest]


def _from_inputs(spec: ModelSpec, parents: dict[Node, list[Node]]) -> list[Node]:
    """Return the nodes that the outputs need, each after its parents."""
    finished: list[Node] = []
    done: set[Node] = set()
    for output in spec.outputs:
        waiting = [((output.layer, output.call), False)]
        while waiting:
            node, is_ready = waiting.pop()
            if node in done:
                continue
            if is_ready:
                done.add(node)
                finished.append(node)
                continue
            waiting.append((node, True))
            waiting += [
                (p, False) for p in reversed(parents.get(node, [])) if p not in done
            ]
    return finished
