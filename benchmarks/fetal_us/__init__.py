# SPDX-License-Identifier: Apache-2.0
"""Diff-ICE on real fetal ultrasound: tables for the training configs, and an evaluation of the counterfactuals."""
