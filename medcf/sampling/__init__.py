# SPDX-License-Identifier: Apache-2.0
"""The denoising loop and what runs in it."""
