"""The loss along lines, planes, paths and between solutions."""
