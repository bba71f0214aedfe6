# SPDX-License-Identifier: Apache-2.0
"""From a case to its files: the job of a bundle."""
