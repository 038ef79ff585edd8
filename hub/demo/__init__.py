"""The demo: the story of the product with real processes and real media, on one machine, in under 90 seconds."""
