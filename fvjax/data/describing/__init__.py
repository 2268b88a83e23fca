"""Conversations about photographs: from labels, from a language model at an endpoint, and their audit by a person."""
