"""ONNX Runtime on the CPU, inference only, the net written as an ONNX graph by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import workloads as w
from onnx import TensorProto, helper, numpy_helper

from peers import Step, normal

OPSET = 17


def versions() -> dict[str, str]:
    return {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__}


def variants(workload: w.Workload, threads: list[int]) -> list[str]:
    return [f"{n}t" for n in threads]


class Graph:
    """Nodes one after another."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.seed = 0
        self.parameters = 0

    def constant(self, *shape: int, fan_in: int = 1, positive: bool = False, learned: bool = True) -> str:
        self.seed += 1
        values = normal(self.seed, *shape) * np.float32((2 / fan_in) ** 0.5)
        name = f"constant{self.seed}"
        self.constants.append(numpy_helper.from_array(np.abs(values) + 0.5 if positive else values, name))
        self.parameters += values.size if learned else 0
        return name

    def node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        name = f"value{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def layer(self, spec: w.Layer, x: str) -> str:
        if isinstance(spec, w.Conv):
            seen = spec.inputs // spec.groups
            weight = self.constant(spec.outputs, seen, spec.kernel, spec.kernel, fan_in=seen * spec.kernel**2)
            inputs = [x, weight]
            inputs += [self.constant(spec.outputs)] if spec.bias else []
            return self.node("Conv", inputs, strides=[spec.stride] * 2, pads=[spec.padding] * 4, group=spec.groups)
        if isinstance(spec, w.BatchNorm):
            learned = [self.constant(spec.channels), self.constant(spec.channels)]
            mean = self.constant(spec.channels, learned=False)
            return self.node(
                "BatchNormalization", [x, *learned, mean, self.constant(spec.channels, positive=True, learned=False)]
            )
        if isinstance(spec, w.ReLU):
            return self.node("Relu", [x])
        if isinstance(spec, w.MaxPool):
            return self.node("MaxPool", [x], kernel_shape=[spec.size] * 2, strides=[spec.size] * 2, ceil_mode=spec.ceil)
        if isinstance(spec, w.Flatten):
            return self.node("Flatten", [x])
        if isinstance(spec, w.Linear):
            weight = self.constant(spec.outputs, spec.inputs, fan_in=spec.inputs)
            return self.node("Gemm", [x, weight, self.constant(spec.outputs)], transB=1)
        if isinstance(spec, w.Dropout):
            return x
        raise NotImplementedError(f"{spec} is in no net that is measured for inference")


def build(workload: w.Workload, variant: str) -> Step:
    net = w.NETS[workload.net]
    graph, y = Graph(), "x"
    for spec in net.layers:
        y = graph.layer(spec, y)
    shape = [workload.batch, *net.image]
    proto = helper.make_graph(
        graph.nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, [workload.batch, 10])],
        graph.constants,
    )
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(variant[:-1])
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = normal(0, *shape)
    return Step(lambda: session.run(None, {"x": x}), parameters=graph.parameters)
