"""Models as ONNX files: the operators of traced graphs written out in ONNX, loops over the tree's levels included.

The functions are onnxscript's, which turns their Python into graphs when the module is imported. A loop carries one
variable only: onnxscript 0.7 may hand several back in another order.
"""
