# SPDX-License-Identifier: Apache-2.0
"""The phantom of fetal planes beside real ones."""
