"""The proof that two models are the same network: onnxruntime runs both, float64 judges."""
