"""What is perturbed: tensors, masks, gradients."""
