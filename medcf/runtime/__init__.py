# SPDX-License-Identifier: Apache-2.0
"""What all rooms build on: files, processes, devices, weights and errors."""
