"""What most of a model's weights are like decides which settings it takes."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.formats.tensor import Tensor
from edgellm.graph import Graph
from edgellm.graph.nodes import embed, linear
from edgellm.graph.nodes.experts import Routing, expert_linear, route
from edgellm.graph.weights import Kind, most_common_kind
from edgellm.quants import FORMATS


def _tensor(name: str, *shape: int) -> Tensor:
    fmt = FORMATS[name]
    return Tensor("weight", shape, fmt, np.zeros((*shape[:-1], fmt.row_bytes(shape[-1])), np.uint8))


def _graph(*weights: Tensor, is_head: bool = False) -> Graph:
    graph = Graph()
    for weight in weights:
        graph.output(linear(graph.input(weight.shape[-1]), weight, sensitive=is_head))
    return graph


@pytest.mark.parametrize(
    ("body", "head", "kind"),
    [
        ([("Q4_K", 512, 2048)], ("Q6_K", 512, 2048), Kind(FORMATS["Q6_K"], n_planes=2)),
        ([("Q4_K", 512, 2048)], ("Q6_K", 128, 2048), Kind(FORMATS["Q4_K"])),
        ([("Q4_K", 512, 2048)] * 2, ("Q6_K", 512, 2048), Kind(FORMATS["Q4_K"])),
        ([("Q4_K", 512, 1024)], ("F32", 16, 1024), Kind(FORMATS["Q4_K"], is_narrow=True)),
        ([("Q4_K", 512, 1024)], ("F32", 512, 1024), Kind(FORMATS["F32"], is_narrow=True)),  # 8 times the bytes
        ([("Q4_K", 512, 1024)], ("F16", 256, 1024), Kind(FORMATS["Q4_K"], is_narrow=True)),  # twice
        ([("Q4_K", 512, 2048)] * 2, ("F16", 256, 1024), Kind(FORMATS["Q4_K"])),
        ([("Q5_0", 64, 640), ("Q5_0", 16, 2048)], ("Q8_0", 128, 640), Kind(FORMATS["Q8_0"], True, 2)),
        ([("Q4_0", 64, 640), ("Q4_0", 64, 1280)], ("Q8_0", 16, 640), Kind(FORMATS["Q4_0"])),
    ],
)
def test_most_bytes_decide(body, head, kind: Kind) -> None:
    graphs = _graph(*(_tensor(*shape) for shape in body)), _graph(_tensor(*head), is_head=True)
    assert most_common_kind(graphs) == kind


def test_embeddings_count_where_they_are_multiplied() -> None:
    table, matrix = _tensor("F16", 512, 64), _tensor("Q8_0", 32, 64)
    graph = Graph()
    graph.output(linear(embed(graph, table), matrix))
    assert most_common_kind([graph]) == Kind(FORMATS["Q8_0"], is_narrow=True)
    assert most_common_kind([graph, _graph(table, is_head=True)]) == Kind(FORMATS["F16"], is_narrow=True)


def test_stacks_of_experts_count() -> None:
    graph = Graph()
    x = graph.input(64)
    chosen, _ = route(linear(x, _tensor("F32", 8, 64)), Routing(2, "softmax"))
    graph.output(expert_linear(x, _tensor("Q4_0", 8, 32, 64), chosen))
    assert most_common_kind([graph]) == Kind(FORMATS["Q4_0"], is_narrow=True)


def test_a_model_without_matrices_has_settings_too() -> None:
    assert most_common_kind([Graph()]) == Kind(FORMATS["F32"])


def test_names_are_files_apart() -> None:
    kinds = [Kind(FORMATS["Q8_0"], is_narrow, n) for is_narrow in (False, True) for n in (1, 2)]
    assert len({str(kind) for kind in kinds}) == len(kinds) and str(kinds[0]) == "Q8_0"
