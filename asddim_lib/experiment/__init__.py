"""The paper's experiment: drawn, kept, judged, reported."""
