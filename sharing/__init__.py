"""What convert.py uses: diffusers folders, and the model card in them."""
