"""What convert.py and make page use: diffusers folders with their model card, and networks as ONNX."""
