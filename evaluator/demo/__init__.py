"""A small support-manager agent, and the main job run over its traces."""
