# SPDX-License-Identifier: Apache-2.0
"""Do synthetic planes make a better classifier of another site's images? The experiment of FU-LoRA, on phantoms."""
