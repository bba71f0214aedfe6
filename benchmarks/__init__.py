# SPDX-License-Identifier: Apache-2.0
"""Speed and quality comparisons, measured as ratios within one run."""
