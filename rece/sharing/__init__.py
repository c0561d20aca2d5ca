"""Files for others and files of others: exports, model cards, and the eraser behind foreign weights."""
