"""What a device needs to run an export: no torch and no transformers."""
