"""Source formats: recognised, opened, converted to ONNX."""
