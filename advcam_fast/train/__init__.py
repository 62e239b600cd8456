"""From the maps of a run to trained networks."""
