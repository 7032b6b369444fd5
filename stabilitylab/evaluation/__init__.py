"""What a backbone has learned: nearest neighbors, linear classifiers, effective ranks."""
