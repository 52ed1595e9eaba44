"""PEFT's formats: settings, tensor names and target matching, shared by the kinds that use them."""
