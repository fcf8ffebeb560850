"""A policy at the wheel of a plant: what is steered, near or far. This floor knows plants, surfaces and URLs, and neither engines nor gateways."""
