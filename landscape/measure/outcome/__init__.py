"""What a training reached: accuracy, calibration, margins, features, memorization, robustness."""
