"""The search for the best grid."""
