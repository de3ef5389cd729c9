"""A function of the ONNX library as a session of its own."""

from typing import Any

import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper
from onnxscript import OnnxFunction

from sortyard.interop.onnx.translations import local_functions

TYPES = {"tensor(float)": TensorProto.FLOAT, "tensor(int64)": TensorProto.INT64, "tensor(bool)": TensorProto.BOOL}
FLOAT, INT64, BOOL = TYPES.values()


def open_function(function: OnnxFunction, inputs: dict[str, int], **attributes: Any) -> onnxruntime.InferenceSession:
    node = helper.make_node(function.name, list(inputs), ["out"], domain="sortyard", **attributes)
    graph = helper.make_graph(
        [node],
        "one function",
        [helper.make_tensor_value_info(name, kind, None) for name, kind in inputs.items()],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("sortyard", 1)],
        functions=[ir.serde.serialize_function(one) for one in local_functions()],
        ir_version=10,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options)
