"""Sluice's training: learns recurrent networks from a recipe and publishes them as model folders."""
