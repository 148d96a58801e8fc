"""Feature networks with one interface: images in, one row of features per image out."""
