"""The loss on lines and planes, around one solution and between several."""
