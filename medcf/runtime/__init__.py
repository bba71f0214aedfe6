# SPDX-License-Identifier: Apache-2.0
"""What every room stands on: files, processes, devices, weights and errors."""
