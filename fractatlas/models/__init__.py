"""Networks, their weights, and the classifier that trains them."""
