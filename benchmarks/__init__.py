# SPDX-License-Identifier: Apache-2.0
"""What is fast, against what, measured as ratios in one run."""
