"""How zero-shot accuracies are measured here, and how near those that others measured so must be. Imports nothing."""

PROTOCOL = "clip"  # CLIP's normalization, and class embeddings averaged over all templates of a task
TOLERANCE = 0.03  # between a published zero-shot accuracy and that of another library's preprocessing
